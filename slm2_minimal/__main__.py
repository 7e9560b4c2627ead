"""`python -m slm2_minimal COMMAND ...` is `slm2 COMMAND ...`; the form that launchers
such as torchrun want.
"""

import sys

from slm2_minimal.cli import main

if __name__ == "__main__":
    sys.exit(main())
