"""`python -m megaqk`."""

import sys

from megaqk.cli import main

if __name__ == "__main__":
    sys.exit(main())
