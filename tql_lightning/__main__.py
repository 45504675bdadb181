"""``python -m tql_lightning`` is the command ``tql``."""

import sys

from tql_lightning.cli.main import main
from tql_lightning.system.child_processes import end_with_starter

if __name__ == "__main__":
    end_with_starter()
    sys.exit(main())
