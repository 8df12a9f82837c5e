"""`python -m cascadia_operator`."""

import sys

from cascadia_operator.main import main

if __name__ == "__main__":  # the planning process imports this module too
    sys.exit(main())
