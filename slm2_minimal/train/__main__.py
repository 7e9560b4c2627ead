"""`python -m slm2_minimal.train CONFIG ...` is `slm2 train CONFIG ...`; the form that launchers such as torchrun want."""

import sys

from slm2_minimal.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
