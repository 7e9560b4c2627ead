"""Paths that hold nothing of use to a command, and files that are damaged: refused in
one line, with nothing written or lost.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import DIGITS, LONG, TAKE_A_CONFIG, TRAIN, Words, is_refused, name_of

# Paths

GGUF = ["--format", "gguf", "--tokenizer", "tiny"]
NO_PATHS = ["", " ", "~nobody-x/a", "a\0b", "x" * 300, LONG, "\n", "file/x", "nowhere/at/all"]


@pytest.mark.parametrize("path", [*NO_PATHS, "file", "empty", "hub"], ids=name_of)
@pytest.mark.parametrize("command", [*(words[0] for words in TAKE_A_CONFIG)])
def test_no_configuration(
    command: str, path: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for end in ("", ".toml"):
        is_refused([command, path + end, "--gpus", "1"], here, capfd)


@pytest.mark.parametrize("path", [*NO_PATHS, "file", "empty", "small.toml"], ids=name_of)
@pytest.mark.parametrize("command", ["generate", "chat", "export", "quantise"])
def test_no_model(command: str, path: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    is_refused([command, path] + ["out"] * (command in ("export", "quantise")), here, capfd)


@pytest.mark.parametrize("path", ["/proc/out", "file", "hub", "run", *NO_PATHS[:-1]], ids=name_of)
def test_no_place_to_export_to(path: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if path == "\n":
        pytest.skip("a name that a folder can have")
    is_refused(["export", "hub", path], here, capfd)
    is_refused(["quantise", "run", path], here, capfd)
    is_refused(["export", "hub", path, *GGUF], here, capfd)


# Files that are damaged

TOML: list[bytes] = [
    b"[", b"\xff", b"\xff\xfe[\0", b"\0", b"a", b"a = 1", b"= 3", b"train = 3", b"[trian]",
    b"[train]\nsteps = 1\nsteps = 2", b"[[train]]\nsteps = 1", b"[train.steps]\na = 1",
    b"[train]\nstep = 1", b"[train]\nprompts = [1]", b"[train]\nsteps = nan",
    b"[train]\nsteps = inf", b"[train]\nsteps = 07:30:00", b"[train]\nsteps = 0x" + b"f" * 5000,
    b"[train]\nsteps = '" + LONG.encode() + b"'", b"[model]\nnum_hidden_layers = 10000000",
    b"base = 3", b"base = ''", b"base = []", b"base = 'tony'", b"base = 'damaged.toml'",
    b"base = 'nowhere.toml'", b"base = 'folder.toml'", b"base = '~nobody-x/a.toml'",
    b'base = "a\\u0000.toml"', b"[data.sources]\na = 3", b"[data]\nsources = []",
    b"[data.stages]\na = 1", b"[data.sources.a]\nb = 1", b"[data]\nprepared = 2024-05-01",
    b"[data]\nprepared = 3", b"[schedule]\nwarmup_steps = nan", b"[schedule]\ndecay_steps = 1e300",
    b"[schedule]\ndecay_steps = '9'", b"a = " + b"[" * 5000, b"[a" + b".a" * 5000 + b"]",
    b"a = " + DIGITS.encode(), b"['a\\nb']", b"[train]\n'a\\nb' = 3", b'["a\\nb"]',
    b'[train]\n"a\\nb" = 3', b'[data.sources."a\\nb"]\nc = 3',
]  # fmt: skip


@pytest.mark.parametrize("content", TOML, ids=range(len(TOML)))
def test_toml(content: bytes, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "damaged.toml").write_bytes(content)
    is_refused(["train", "damaged.toml", "--check"], here, capfd)


NO_JSON: list[bytes] = [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + DIGITS.encode() + b"}"]
NO_OBJECTS: list[Any] = [None, 3, "text", [], [{}]]

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
CONFIG_JSON: list[Any] = [
    *NO_OBJECTS,
    *({name: value} for value in ("many", -1, 10**30, 1.5) for name in SIZES),
    {"vocab_size": 2**24, "hidden_size": 2**20}, {"hidden_size": 33}, {"num_hidden_layers": 2},
    {"layer_norm_eps": float("nan")}, {"layer_norm_eps": 0}, {"use_qkv_bias": "yes"},
    {"use_qkv_bias": False}, {"eos_token_id": "end"}, {"eos_token_id": ["end"]},
    {"bos_token_id": -1}, {"model_type": "llama"}, {"hidden_act": "gelu"}, {"qk_layernorm": True},
    {"head_dim": 7},
    {"use_parallel_residual": True}, {"quantization_config": {}}, {"rope_scaling": "linear"},
    {"rope_scaling": {"type": "linear"}}, {"rope_parameters": {"type": "linear"}},
    {"rope_parameters": {"rope_type": "yarn"}}, {"rope_parameters": {"rope_theta": "x"}},
    {"rope_parameters": {"partial_rotary_factor": 3}}, {"rope_parameters": []},
]  # fmt: skip

INDEX: list[Any] = [
    *NO_OBJECTS, {}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {"a": ["x"]}},
    {"weight_map": {"a": None}}, {"weight_map": {"a": "../hub/model.safetensors"}},
    {"weight_map": {"a": "/etc/passwd"}}, {"weight_map": {"a": ""}}, {"weight_map": {"a": ".."}},
    {"weight_map": {"a": "a\0b"}}, {"weight_map": {"a": "x" * 300}}, {"weight_map": {"a": LONG}},
    {"weight_map": {"a": "nowhere.safetensors"}}, {"weight_map": {"a": "config.json"}},
    {"weight_map": {}},
]  # fmt: skip

STATE: list[Any] = [
    *NO_OBJECTS, {"sha256": None}, {"sha256": []}, {"sha256": {"a": None}}, {"sha256": {"a": "b"}},
    {"sha256": {"../a": "b"}}, {"sha256": {"a\0b": "b"}}, {"config": None}, {"config": {}},
    {"config": {"model": {}}}, {"config": {"model": {"num_hidden_layers": 10**7}}},
]  # fmt: skip

MANIFEST: list[Any] = [
    *NO_OBJECTS, {"sources": None}, {"sources": []}, {"sources": {"letters": None}},
    {"tokenizer": None}, {"tokenizer": {}}, {"version": "x"},
]  # fmt: skip

WEIGHTS = [
    b"",
    b"\0" * 8,
    b"\xff" * 64,
    b"\x02" + b"\0" * 7 + b"{}",
    b"\x08" + b"\0" * 7 + b'{"a": 3}',
]


def damage(path: Path, content: bytes | dict[str, Any] | Any) -> None:
    """Bytes as they are; fields over the file's own; other JSON in its place."""
    if isinstance(content, dict) and path.exists():
        content = json.loads(path.read_text()) | content
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


FILES: dict[str, tuple[Callable[[Path], Path], list[Any], Words]] = {
    "config": (lambda f: f / "hub/config.json", [*NO_JSON, *CONFIG_JSON], ["export", "hub", "out"]),
    "index": (
        lambda f: f / "hub/model.safetensors.index.json", [*NO_JSON, *INDEX], ["generate", "hub"],
    ),
    "weights": (lambda f: f / "hub/model.safetensors", WEIGHTS, ["export", "hub", "out"]),
    "state": (
        lambda f: f / "run/step-00000002/state.json", [*NO_JSON, *STATE], ["export", "run", "out"],
    ),
    "shard": (
        lambda f: next(f.glob("run/step-00000002/*.safetensors")), WEIGHTS, ["generate", "run"],
    ),
    "manifest": (
        lambda f: f / "prepared/manifest.json", [*NO_JSON, *MANIFEST],
        [*TRAIN, "--data.prepared", "prepared"],
    ),
}  # fmt: skip
DAMAGED = [(kind, number) for kind, (_, some, _) in FILES.items() for number in range(len(some))]


@pytest.mark.parametrize(("kind", "number"), DAMAGED, ids=lambda part: str(part))
def test_damaged_files(
    kind: str, number: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    find, some, words = FILES[kind]
    damage(find(here), some[number])
    is_refused(words, here, capfd)
