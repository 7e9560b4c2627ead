"""`slm2 quantise` on a toy that has learned something: what it writes, that others read
it, and what fewer bits may cost at most.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from slm2_minimal.config import RunConfig
from slm2_minimal.distributed.pretrained import load_model
from slm2_minimal.distributed.world import World
from slm2_minimal.evaluate.quantised import calibration, held_out, text_costs
from slm2_minimal.files import read_json
from slm2_minimal.inference.quantise import quantise
from slm2_minimal.model import quantised
from slm2_minimal.model.quantised import quantised_layers
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.tokenizer import SentencePieceTokenizer
from slm2_minimal.train.trainer import Trainer
from tests.commands import Run
from tests.conftest import OVERRIDES

WORLD = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy after 100 steps on English and French, whose tenth is held out."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    changes = {
        "model.hidden_size": 64, "model.intermediate_size": 128, "model.num_hidden_layers": 2,
        "data.sources": {name: {"languages": [name]} for name in ("en", "fr")},
        "data.validation_percent": 10, "train.steps": 100, "train.global_batch_tokens": 1024,
        "train.micro_batch_size": 32, "train.validate_every": 100, "train.save_every": 100,
        "train.prompts": [], "train.output_dir": str(folder), "schedule.cooldown_start": 80,
        "schedule.cooldown_steps": 20, "schedule.decay_steps": 108,
    }  # fmt: skip
    Trainer.from_config(RunConfig.load("tiny", OVERRIDES | changes), WORLD).run()
    return folder


@pytest.fixture(scope="module")
def toy(run_dir: Path) -> StableLM2:
    return load_model(str(run_dir))[0]


def learned(seed: int) -> list[str]:
    """A third of the texts that the toy was trained on."""
    every = [d for d in load_corpus(languages=["en", "fr"]) if not is_validation(d.id, 10)]
    return [document.text for document in every[seed::3]]


@pytest.fixture
def calibrate(tmp_path: Path) -> Path:
    path = tmp_path / "calibrate.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in learned(0)))
    return path


def mean_loss(costs: dict[str, Any], name: str) -> float:
    return sum(getattr(cost, name) for cost in costs.values()) / len(costs)


@pytest.mark.parametrize(
    ("bits", "group", "most"), [(8, None, 0.005), (8, 32, 0.005), (4, 32, 0.03), (4, 64, 0.03)]
)
def test_what_it_may_cost(
    bits: int, group: int | None, most: float, toy: StableLM2, tiny: SentencePieceTokenizer
) -> None:
    texts = {name: texts for name, texts in held_out().items() if name in ("en", "fr")}
    costs = text_costs(toy, quantise(toy, bits, group), texts, tiny)
    before, after = mean_loss(costs, "loss_before"), mean_loss(costs, "loss")
    assert before < 6.3, "it has learned something: log(1024) is 6.9"
    assert after < before * (1 + most)
    assert min(cost.same_top_token for cost in costs.values()) > (0.95 if bits == 8 else 0.7)


def test_a_calibrated_model_is_closer(toy: StableLM2, tiny: SentencePieceTokenizer) -> None:
    """On text that nobody has seen, whatever text it was calibrated on."""
    texts = {name: texts for name, texts in held_out().items() if name in ("en", "fr")}
    for symmetric in (True, False):
        nearest = text_costs(toy, quantise(toy, 4, 32, symmetric=symmetric), texts, tiny)
        for seed in range(3):
            batch = calibration(learned(seed), tiny, 64)
            guided = quantise(toy, 4, 32, symmetric=symmetric, method="gptq", calibration=batch)
            costs = text_costs(toy, guided, texts, tiny)
            assert mean_loss(costs, "divergence") < 0.7 * mean_loss(nearest, "divergence")


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_folder(method: str, run_dir: Path, calibrate: Path, tmp_path: Path, slm2: Run) -> None:
    out = tmp_path / "above" / "out"
    words = ["--calibrate", calibrate] if method == "gptq" else []
    code, shown, _ = slm2(
        "quantise", run_dir, out, "--bits", 4, "--method", method, "--asymmetric", *words
    )
    assert code == 0
    assert "down_proj" in shown
    assert "all else in bf16" in shown
    assert [path.name for path in out.parent.iterdir()] == ["out"], "no part is left"
    assert {path.name for path in out.iterdir()} >= {
        "config.json", "model.safetensors", "quantisation.json", "tokenizer.model",
    }  # fmt: skip

    # what was written is what the report is of
    report = read_json(out / "quantisation.json")
    assert report["settings"] == {"bits": 4, "group": 32, "symmetric": False, "method": method}
    assert len(report["layers"]) == 15
    few, tokenizer = load_model(str(out))
    assert tokenizer == str(out)
    assert len(list(quantised_layers(few))) == 15
    again = text_costs(
        load_model(str(run_dir))[0], few, {"en": held_out()["en"]}, load_tiny(tokenizer)
    )
    for name, value in vars(again["en"]).items():
        assert value == pytest.approx(report["texts"]["en"][name], rel=2e-2), name

    # and others read it
    code, text, _ = slm2("generate", out, "--prompt", "The", "--max-new-tokens", 5)
    assert code == 0
    assert "The" in text
    for words in (["quantise"], ["export"], ["export", "--format", "gguf"]):
        code, shown, error = slm2(words[0], out, tmp_path / "twice", *words[1:])
        assert (code, shown) == (2, "")
        assert "is quantised already; name the original" in error


def test_a_text_has_no_lines_of_ours(
    run_dir: Path, tmp_path: Path, slm2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which product is used is said beside the text, which may go into a file."""
    assert slm2("quantise", run_dir, tmp_path / "small")[0] == 0
    monkeypatch.setattr(quantised, "_measured", {})
    words = ("--prompt", "The", "--max-new-tokens", 4, "--temperature", 0)
    code, out, err = slm2("generate", tmp_path / "small", *words)
    assert code == 0
    assert out.startswith("The")
    assert "weights of" not in out
    assert err.startswith("weights of 8 bits")


def test_a_machine_too_small_for_the_files(
    run_dir: Path, tmp_path: Path, slm2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert slm2("quantise", run_dir, tmp_path / "small", "--bits", 4)[0] == 0
    size = sum(file.stat().st_size for file in (tmp_path / "small").glob("*.safetensors"))
    monkeypatch.setattr("slm2_minimal.distributed.device.total_memory", lambda device: size)
    load_model(str(tmp_path / "small"))
    monkeypatch.setattr("slm2_minimal.distributed.device.total_memory", lambda device: size - 1)
    code, out, err = slm2("generate", tmp_path / "small", "--prompt", "The")
    assert (code, out) == (2, "")
    assert "use a machine with more memory" in err


def load_tiny(folder: str) -> Any:
    from slm2_minimal.text.tokenizer import load_tokenizer

    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--method gptq", "calibrate = None: gptq needs a text"),
        ("--calibrate FILE", "rtn looks at no text"),
        ("--method gptq --calibrate nowhere", "nowhere"),
        ("--method gptq --calibrate SHORT", "too few to tell"),
        ("--group 48", "group = 48: does not divide the model's matrices of 64 columns"),
        ("--group 0", "group = 0"),
        ("--group 3000000", "group = 3000000"),
        ("--tokenizer nowhere.model", "nowhere.model"),
        ("--tokenizer arcade100k", "ids, the model 1024"),
    ],
)
def test_what_is_refused(
    words: str, said: str, run_dir: Path, calibrate: Path, tmp_path: Path, slm2: Run
) -> None:
    """In one line, and nothing is left behind."""
    (tmp_path / "short.txt").write_text("Too short.")
    text = words.replace("FILE", str(calibrate)).replace("SHORT", str(tmp_path / "short.txt"))
    before = sorted(tmp_path.rglob("*"))
    code, _, error = slm2("quantise", run_dir, tmp_path / "a" / "out", *text.split())
    assert code == 2, error
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_is_there_is_not_touched(run_dir: Path, tmp_path: Path, slm2: Run) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "out", tmp_path / ("x" * 300)):
        code, _, error = slm2("quantise", run_dir, out)
        assert code == 2, error
        assert error.startswith("slm2: out = ")
        assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_empty_folder_will_do_and_a_failure_leaves_it(
    run_dir: Path, tmp_path: Path, slm2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the last file."""
    from slm2_minimal import files

    def full(path: Path, content: object) -> None:
        raise OSError(28, "no space left")

    out = tmp_path / "out"
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", full)
        code, _, error = slm2("quantise", run_dir, out)
    assert code == 2
    assert "no space left" in error
    assert list(tmp_path.rglob("*")) == [out]
    assert slm2("quantise", run_dir, out)[0] == 0
    assert (out / "quantisation.json").exists()
