"""Imported by the fork server of worker processes (common/lab/workers.py): imports all that PAPERLAB_PRELOAD names."""

import json
import os
import pkgutil

for name in json.loads(os.environ.get("PAPERLAB_PRELOAD", "[]")):
    try:
        pkgutil.resolve_name(name)  # a module, or what a module loads when it is first asked for
    except Exception:  # not installed, say: a worker that needs it will tell
        continue
