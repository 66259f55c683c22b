"""`python -m xtuner_wulewule`: the `wulewule` command of this interpreter, wherever its script lies."""

import sys

from xtuner_wulewule.cli import main

if __name__ == "__main__":
    sys.exit(main())
