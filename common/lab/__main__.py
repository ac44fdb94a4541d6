"""`python -m common.lab <command>`: see cli.py."""

import sys

from common.lab.project import Project
from common.lab.surroundings import forgive_streams, settle

settle(Project.current().root)  # before anything is imported that a user's settings could change
forgive_streams()

from common.lab.cli import main  # noqa: E402

sys.exit(main())
