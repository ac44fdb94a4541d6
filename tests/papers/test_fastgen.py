"""The experiment, on little."""
