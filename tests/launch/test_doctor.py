"""`slm2 doctor`."""

import torch

from slm2_minimal.launch.doctor import report


def test_doctor_says_what_is_here() -> None:
    text = "\n".join(report())
    for part in (
        "torch " + torch.__version__,
        "matrix product float32",
        "memory copy",
        "extra hf",
        "arcade100k",
        "GiB free",
    ):
        assert part in text
