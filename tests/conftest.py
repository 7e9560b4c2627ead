"""What the unit tests share: repeatable property tests, no network, the two tokenizers,
loaded once, and the runs that commands are tried on.
"""

import logging
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from slm2_minimal.config import RunConfig
from slm2_minimal.text.arcade import find_ranks
from slm2_minimal.text.tokenizer import (
    Arcade100k,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)

# derandomize: the same examples on every run, so that a failure in CI is one that can
# be repeated.
settings.register_profile(
    "slm2",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("slm2")
pytest.register_assert_rewrite("tests.commands")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but this machine itself is out of reach; processes that talk to each
    other here may.
    """
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def no_terminal() -> Iterator[None]:
    """A test that runs a command leaves no handler that would print for the next."""
    logger = logging.getLogger("slm2_minimal")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def ranks_file() -> bytes:
    """The bytes of cl100k's ranks file."""
    return find_ranks()


@pytest.fixture(scope="session")
def arcade() -> Arcade100k:
    tokenizer = load_tokenizer("arcade100k")
    assert isinstance(tokenizer, Arcade100k)
    return tokenizer


@pytest.fixture(scope="session")
def tiny() -> SentencePieceTokenizer:
    tokenizer = load_tokenizer("tiny")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


@pytest.fixture(scope="session", params=["arcade100k", "tiny"])
def tokenizer(
    request: pytest.FixtureRequest, arcade: Arcade100k, tiny: SentencePieceTokenizer
) -> Tokenizer:
    """A test that asks for this runs with each tokenizer."""
    return arcade if request.param == "arcade100k" else tiny


# A run small enough for tests: one layer, a few hundred steps a minute, on a slice of
# the embedded corpus.
OVERRIDES: dict[str, Any] = {
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.num_key_value_heads": 2,
    "model.max_position_embeddings": 64,
    "data.seq_len": 32,
    "data.sources": {
        "en": {"languages": ["en"], "domains": ["recipes"], "weight": 2},
        "math": {"languages": ["math"], "weight": 1},
    },
    "data.validation_percent": 20,
    "train.steps": 20,
    "train.global_batch_tokens": 256,
    "train.micro_batch_size": 4,
    "train.dtype": "float32",
    "train.device": "cpu",
    "train.log_every": 5,
    "train.validate_every": 10,
    "train.save_every": 10,
    "train.prompts": ["12 + 7 ="],
    "train.sample_tokens": 8,
    "schedule.warmup_steps": 2,
    "schedule.decay_steps": 22,
    "schedule.cooldown_start": 16,
    "schedule.cooldown_steps": 4,
}


@pytest.fixture
def small_run(tmp_path: Path) -> Callable[..., RunConfig]:
    """`small_run(name="run", **{"section.field": value})`: the configuration of a small
    run under tmp_path.
    """

    def make(name: str = "run", **changes: Any) -> RunConfig:
        defaults = OVERRIDES | {"train.output_dir": str(tmp_path / name)}
        steps = changes.get("train.steps")
        if isinstance(steps, int) and steps > defaults["train.steps"]:
            defaults["schedule.cooldown_start"] = steps - defaults["schedule.cooldown_steps"]
        return RunConfig.load("tiny", defaults | changes)

    return make


# For tests of commands. What these import takes seconds: other tests need not wait.


@pytest.fixture
def slm2(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`slm2(*words)` -> (exit code, stdout, stderr), in this process. File descriptors
    are read, so that no library goes unheard.
    """
    from slm2_minimal.cli import main

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse ends --help and wrong arguments itself
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TOML file of a run that has been made."""
    from slm2_minimal.train.trainer import Trainer
    from tests.commands import write_config

    path = write_config(tmp_path_factory.mktemp("cli"))
    Trainer.from_config(RunConfig.load(path)).run()
    return path


@pytest.fixture(scope="module")
def run_folder(config: Path) -> Path:
    return config.parent / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, its run, the same model in Hugging Face's format, prepared text,
    and things that are none of these.
    """
    from slm2_minimal.distributed.pretrained import load_model
    from slm2_minimal.prepare.run import prepare
    from slm2_minimal.train.trainer import Trainer
    from tests.commands import write_config

    folder = tmp_path_factory.mktemp("bad")
    config = write_config(folder)
    Trainer.from_config(RunConfig.load(config)).run()
    load_model(str(folder / "run"))[0].save_pretrained(folder / "hub")
    prepare(RunConfig.load(config, {"data.prepared": str(folder / "prepared")}))
    (folder / "empty").mkdir()
    (folder / "folder.toml").mkdir()
    (folder / "file").write_text("no model")
    (folder / "broken.model").write_bytes(b"no model")
    (folder / "broken.tiktoken").write_bytes(b"no ranks")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, to damage."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(folder)
    return folder
