"""Bake-offs: systems of several papers on equal terms. One module a bake-off, with the interface of an experiment."""
