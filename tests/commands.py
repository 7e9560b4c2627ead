"""What the tests of the commands share: a small run's configuration, and what a
command says when it refuses.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slm2_minimal.cli import main

CONFIG = """
[model]
vocab_size = 1024
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64
bos_token_id = 0
eos_token_id = 0

[schedule]
kind = "constant"
warmup_steps = 0

[data]
tokenizer = "tiny"
seq_len = 32
validation_percent = 20
[data.sources]
letters = { path = "SOURCE" }

[train]
steps = 2
global_batch_tokens = 256
micro_batch_size = 4
device = "cpu"
dtype = "float32"
log_every = 1
output_dir = "OUTPUT"
prompts = ["Dear"]
sample_tokens = 4
"""


Run = Callable[..., tuple[int, str, str]]


def write_config(folder: Path) -> Path:
    """A run of two steps on forty letters, everything under `folder`."""
    records = [
        {"id": f"letter-{i}", "language": "en", "text": f"Dear friend {i}, it rained all week."}
        for i in range(40)
    ]
    (folder / "letters.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    path = folder / "small.toml"
    path.write_text(
        CONFIG.replace("SOURCE", str(folder / "letters.jsonl")).replace(
            "OUTPUT", str(folder / "run")
        )
    )
    return path


def says(result: tuple[int, str, str], code: int, *parts: str) -> None:
    """The command ended with `code` and one line on stderr, which holds `parts`."""
    assert result[0] == code, result
    assert result[2].endswith("\n")
    assert result[2].count("\n") == 1, result[2]
    assert result[2].startswith("slm2: ")
    for part in parts:
        assert part in result[2]


# Bad inputs

Words = list[str]
LONG = "x" * 10_000
DIGITS = "9" * 5_000
TAKE_A_CONFIG: list[Words] = [
    ["train", "small.toml", "--check"],
    ["prepare", "small.toml"],
    ["plan", "small.toml", "--gpus", "1"],
    ["launch", "small.toml", "--gpus", "1", "--dry-run"],
]
TRAIN = ["train", "small.toml", "--check"]


def contents(folder: Path) -> dict[Path, bytes | None]:
    """What stands in a folder, byte for byte."""
    paths = sorted(folder.rglob("*"))
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def is_refused(words: Words, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that the command says about `words`."""
    before = contents(folder)
    capfd.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:  # argparse ends with it
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    assert code == 2, (code, out, err)
    assert err.startswith("slm2: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) < 1_200
    assert contents(folder) == before
    return err


def name_of(case: object) -> str:
    """A short name of a test."""
    text = " ".join(case) if isinstance(case, list) else str(case)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 90 else f"{text[:80]}...{len(text)}"
