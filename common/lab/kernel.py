"""A kernel that reads no settings of IPython's: `python -m common.lab.kernel -f connection.json`.

Here those of the machine are left out. The user's own are in IPYTHONDIR, which whoever starts this kernel points at an
empty folder. It is killed with whoever started it: its own look-out, once a second, sees nothing in compiled code.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.path[0] == "" or Path(sys.path[0]) == Path.cwd():
        del sys.path[0]  # as ipykernel_launcher does: what lies beside a notebook is no library

    from common.lab.orphans import killed_with_parent

    killed_with_parent()

    from ipykernel import kernelapp
    from IPython.core import application

    application.ENV_CONFIG_DIRS.clear()
    application.SYSTEM_CONFIG_DIRS.clear()
    kernelapp.launch_new_instance()
