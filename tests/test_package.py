"""The package's front door: the contract's names, without waiting for torch."""

import subprocess
import sys

import pytest

import slm2_minimal
from slm2_minimal.model.rope import rotary_angles

CONTRACT = {
    "ModelConfig",
    "ScheduleConfig",
    "StableLM2",
    "apply_rotary",
    "generate",
    "learning_rate",
    "load_corpus",
    "load_tokenizer",
    "rotary_angles",
}


def test_the_contract() -> None:
    assert set(slm2_minimal.__all__) == CONTRACT
    assert set(dir(slm2_minimal)) >= CONTRACT
    for name in CONTRACT:
        assert getattr(slm2_minimal, name).__name__ == name
    assert slm2_minimal.rotary_angles is rotary_angles


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match=r"'slm2_minimal' has no attribute 'StableLM3'"):
        slm2_minimal.StableLM3  # noqa: B018
    assert not hasattr(slm2_minimal, "nowhere")


HEAVY = ("torch", "transformers", "datasets", "numpy", "sentencepiece", "matplotlib")


@pytest.mark.parametrize(
    "code",
    [
        "import slm2_minimal",
        "import slm2_minimal.config, slm2_minimal.config.keys",
        "import slm2_minimal.cli",
        "from slm2_minimal import ModelConfig; ModelConfig.preset('tiny').num_parameters()",
        "from slm2_minimal.cli import main; main(['train', 'tony'])",
        "from slm2_minimal.cli import main; main(['plan', 'tiny', '--gpus', '1', '--a.b', '3'])",
        "import contextlib; from slm2_minimal.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['train', 'tiny', '--help'])",
        "import contextlib; from slm2_minimal.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--version'])",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    asked = f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from slm2_minimal import *", names)
    assert set(names) >= CONTRACT
