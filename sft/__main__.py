"""`python -m sft` is the command `sft`, for launchers that start modules."""

import sys

from sft.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
