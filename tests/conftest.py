"""Surroundings of all tests: no display, none of the caller's own settings, hypothesis without deadlines."""

import os

import hypothesis

os.environ.setdefault("MPLBACKEND", "agg")
for name in [name for name in os.environ if name.startswith(("PAPERLAB_", "MLFLOW_")) or name == "DEBUG"]:
    if name not in ("PAPERLAB_DATA", "PAPERLAB_CACHE"):  # where data sets lie is no setting but a place
        del os.environ[name]

# Machines in CI are slow at times: how long an example takes says nothing, what it shows does. CI draws the same
# examples each time, so that what it says is about the change at hand; everywhere else each run explores new ones.
in_ci = bool(os.environ.get("CI"))
hypothesis.settings.register_profile("paperlab", deadline=None, print_blob=True, derandomize=in_ci)
hypothesis.settings.load_profile("paperlab")
