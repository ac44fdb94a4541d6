"""`python -m common.lab <command>`: see cli.py."""

import sys

from common.lab.cli import main

sys.exit(main())
