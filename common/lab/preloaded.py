"""Imported by the fork server of worker processes (common/lab/workers.py): imports all that PAPERLAB_PRELOAD names.

The server is killed with the process that started it, and its workers with it: left alone, it would not notice an end
while it imports, a worker not while it computes in compiled code, and the server waits for its workers.
"""

import json
import os
import pkgutil

from common.lab.orphans import killed_with_parent

if os.environ.get("PAPERLAB_KILLED_WITH_PARENT"):
    killed_with_parent()
    os.register_at_fork(after_in_child=killed_with_parent)  # each worker, whose parent is this server
for name in json.loads(os.environ.get("PAPERLAB_PRELOAD", "[]")):
    try:
        pkgutil.resolve_name(name)  # a module, or what a module loads when it is first asked for
    except Exception:  # not installed, say: a worker that needs it will tell
        continue
