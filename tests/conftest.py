"""Surroundings of all tests: no display, none of the caller's own settings, hypothesis without deadlines."""

import os

import hypothesis

os.environ.setdefault("MPLBACKEND", "agg")
for name in [name for name in os.environ if name.startswith(("PAPERLAB_", "MLFLOW_")) or name == "DEBUG"]:
    if name not in ("PAPERLAB_DATA", "PAPERLAB_CACHE"):  # where data sets lie is no setting but a place
        del os.environ[name]

# Machines in CI are slow at times: how long an example takes says nothing, what it shows does.
hypothesis.settings.register_profile("paperlab", deadline=None, print_blob=True)
hypothesis.settings.load_profile("paperlab")
