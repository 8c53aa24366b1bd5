"""``python -m sb3_klip`` is ``sb3-klip``."""

import sys

from sb3_klip.cli import main

if __name__ == "__main__":
    sys.exit(main())
