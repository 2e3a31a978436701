"""`python -m hwrx`: the command, for interpreters whose scripts are not on the PATH."""

import sys

from hwrx.cli import main

sys.exit(main())
