"""``python -m cascadia_cli``."""

import sys

from cascadia_cli.main import main

sys.exit(main())
