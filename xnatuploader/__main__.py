"""`python -m xnatuploader`."""

import sys

from xnatuploader import cli

sys.exit(cli.main())
