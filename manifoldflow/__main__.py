"""``python -m manifoldflow``: the command line, where the script is not on the path."""

import sys

from manifoldflow.cli import main

sys.exit(main())
