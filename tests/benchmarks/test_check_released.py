"""The check of the released weights, tried on random ones in the same form."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import check_released
from slm2_minimal.config import ModelConfig
from slm2_minimal.export.tokenizer_files import write_tokenizer
from slm2_minimal.files import read_json, write_json
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.teach.recorded import load_record
from slm2_minimal.text.arcade import Arcade100k
from slm2_minimal.text.corpus import load_corpus

SHAPE = ModelConfig.preset("stablelm-2-1_6b").replace(
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    initializer_range=0.1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, arcade: Arcade100k) -> Path:
    """Released configuration and tokenizer, a small model, every parameter random."""
    path = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    model = StableLM2(SHAPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.to(torch.bfloat16).save_pretrained(path)
    write_tokenizer(path, arcade, SHAPE.max_position_embeddings)
    return path


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every choice of the corpus two documents, and a few tokens written."""
    monkeypatch.setattr(check_released, "WRITTEN", 4)
    monkeypatch.setattr(
        check_released, "load_corpus", lambda **chosen: load_corpus(**{**chosen, "limit": 2})
    )


def run(base: Path, zephyr: Path, out: Path, *words: str) -> int:
    models = ["--base", str(base), "--zephyr", str(zephyr)]
    return check_released.main([*models, "--out", str(out), *words])


@pytest.mark.slow
def test_all_of_it_in_small(folder: Path, tmp_path: Path) -> None:
    assert run(folder, folder, tmp_path / "out.json", "--small") == 0
    record = load_record(tmp_path / "out.json")
    assert record["results"]["small"] is True
    for name in ("base", "zephyr"):
        found = record["results"][name]
        assert len(found["checks"]) == 2 + 2 * 7
        assert all(check["passed"] for check in found["checks"])
        assert found["bits_per_byte"].keys() == {"en", "de", "es", "fr", "it", "nl", "pt"}
        assert all(1 < bits < 100 for bits in found["bits_per_byte"].values())
    assert {"date", "machine", "torch", "command"} <= record.keys()


@pytest.mark.slow
def test_a_failing_check(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another size, merges that transformers lacks, other logits, a model that is not
    there: a line each, and the exit code is 1.
    """
    path = folder / "tokenizer.json"
    whole = path.read_text()
    content = read_json(path)
    content["model"]["merges"] = content["model"]["merges"][:50_000]
    write_json(path, content)
    monkeypatch.setattr(check_released, "CLOSE", 0.0)
    try:
        assert run(folder, tmp_path / "nowhere", tmp_path / "out.json") == 1
    finally:
        path.write_text(whole)
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    for part in ("keys and shapes: 32 tensors", "tokenizer: ", "known answer: ", "logits, de: "):
        assert any(line.startswith(f"FAILED | {folder} | {part}") for line in failed), failed
    assert any("it loads: path = " in line for line in failed)
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [check["passed"] for check in results["zephyr"]["checks"]] == [False]
