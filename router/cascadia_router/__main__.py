"""`python -m cascadia_router --config FILE.json`."""

import sys

from cascadia_router.main import main

sys.exit(main())
