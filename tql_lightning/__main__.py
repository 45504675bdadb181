"""``python -m tql_lightning`` is the command ``tql``."""

import sys

from tql_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
