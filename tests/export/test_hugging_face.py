"""Exporting: what is written, what is refused, and that a failure leaves nothing."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slm2_minimal.config import PRESET_DIR, CheckpointError, DataError
from slm2_minimal.distributed.pretrained import load_model
from slm2_minimal.export import hugging_face, tokenizer_files
from slm2_minimal.export.hugging_face import export, generation_config
from slm2_minimal.files import read_json
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.inference.text import stream_text
from slm2_minimal.model import hub
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.arcade import Arcade100k
from slm2_minimal.text.tokenizer import load_tokenizer
from tests.models import TINY


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A model in a folder of Hugging Face's format."""
    StableLM2(TINY).save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_same_weights_are_written(source: str, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "above" / "out"
    line = export(source, out, dtype)  # type: ignore[arg-type]
    assert line == (
        f"{out}: {TINY.num_parameters():,} parameters in {dtype};"
        " no tokenizer was written: the model names none"
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    assert read_json(out / "config.json")["dtype"] == dtype
    written = StableLM2.from_pretrained(out, getattr(torch, dtype)).state_dict()
    for name, weight in StableLM2.from_pretrained(source).state_dict().items():
        assert torch.equal(written[name], weight.to(getattr(torch, dtype)))


def test_files_can_be_read_by_whoever_may_read_the_folder(source: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("as the user's umask has it")
    for path in Path(source).iterdir():
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_is_not_empty_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is there already; name a new folder, or an empty one"):
        export(source, source)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is there already"):
        export(source, tmp_path / "file")
    with pytest.raises(CheckpointError, match="no such folder"):
        export(str(tmp_path / "nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("existed", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("module", [hub, hugging_face, tokenizer_files])
def test_a_failure_leaves_nothing_behind(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool, module: Any
) -> None:
    """The weights are written, and the disk is full at a later file."""

    def full(path: Path, content: object) -> None:
        path.with_name(f"{path.name}.part").touch()
        raise OSError("no space left on device")

    out = tmp_path / "above" / "out"
    if existed:
        out.mkdir(parents=True)
    shutil.copy(PRESET_DIR / "tiny.model", Path(source) / "tokenizer.model")
    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(DataError, match=r"^out = .* cannot be written \(no space left"):
        export(source, out)
    assert out.parent.exists() == out.exists() == existed
    assert list(out.glob("*")) == []


@pytest.mark.parametrize("out", ["file/out", "x" * 300, "deep/" + "x" * 300])
def test_a_folder_that_cannot_be_is_refused(source: str, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"^out = .* cannot be written"):
        export(source, tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "source"]


# The tokenizer, and what transformers makes of the folder


@pytest.fixture(scope="module")
def with_arcade(tmp_path_factory: pytest.TempPathFactory, ranks_file: bytes) -> Path:
    """A model of the full vocabulary, beside the ranks file that old releases hold."""
    folder = tmp_path_factory.mktemp("arcade") / "source"
    config = TINY.replace(vocab_size=100_352, bos_token_id=100_257, eos_token_id=100_257)
    torch.manual_seed(0)
    model = StableLM2(config.replace(hidden_size=64, num_hidden_layers=2))
    model.init_weights()
    model.save_pretrained(folder)
    (folder / "arcade100k.tiktoken").write_bytes(ranks_file)
    return folder


def test_transformers_writes_the_same(with_arcade: Path, tmp_path: Path) -> None:
    """With the auto classes alone, and the same again after an export of the export."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert export(str(with_arcade), first).endswith("; tokenizer arcade100k")
    assert export(str(first), second).endswith("; tokenizer arcade100k")
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()
    for text in ("Der Zug kam um 12:40", "def f(x):\n    return", ""):
        assert greedy(first, text) == ours(first, text)


def test_a_sentencepiece_model(source: str, tmp_path: Path) -> None:
    shutil.copy(PRESET_DIR / "tiny.model", Path(source) / "tokenizer.model")
    export(source, tmp_path / "out")
    for text in ("Der Zug kam um 12:40", "漢字 ▁", "x"):
        assert greedy(tmp_path / "out", text) == ours(tmp_path / "out", text)


def greedy(folder: Path, text: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    ids = tokenizer(text, return_tensors="pt").input_ids
    if not text:
        ids = torch.tensor([[tokenizer.eos_token_id]])
    written = model.generate(ids, max_new_tokens=20)[0, ids.shape[1] :]
    return tokenizer.decode(written, skip_special_tokens=True)


def ours(folder: Path, text: str) -> str:
    model, name = load_model(str(folder))
    assert name == str(folder)
    tokenizer = load_tokenizer(folder)
    sampling = Sampling(temperature=0, top_k=None, top_p=None, seed=None)
    return "".join(stream_text(model, tokenizer, text, 20, sampling))


@pytest.mark.parametrize(
    ("own", "template", "ends"),
    [(None, None, 100_257), (100_278, "<|im_end|>", 100_278), (0, "<|im_end|>", [0, 100_278])],
)
def test_what_ends_a_text(
    own: int | None, template: str | None, ends: object, arcade: Arcade100k
) -> None:
    config = TINY.replace(vocab_size=100_352, eos_token_id=own)
    found = generation_config(config, arcade, template)
    first = ends[0] if isinstance(ends, list) else ends
    assert (found["eos_token_id"], found["pad_token_id"]) == (ends, first)
    assert found["do_sample"] is False


def test_a_chat_template_goes_along(source: str, tmp_path: Path) -> None:
    """From either place where a folder may have it; another replaces it."""
    shutil.copy(PRESET_DIR / "tiny.model", Path(source) / "tokenizer.model")
    template = "{% for m in messages %}{{ m['content'] }}</s>\n{% endfor %}"
    (Path(source) / "chat_template.jinja").write_text(template)
    out = [tmp_path / name for name in ("first", "second", "third")]
    export(source, out[0])
    export(str(out[0]), out[1])
    export(source, out[2], chat_template=template.replace("content", "role"))
    messages = [{"role": "user", "content": "Guten Tag"}]
    texts = [
        AutoTokenizer.from_pretrained(each).apply_chat_template(messages, tokenize=False)
        for each in out
    ]
    assert texts == ["Guten Tag</s>\n", "Guten Tag</s>\n", "user</s>\n"]


def test_a_tokenizer_that_does_not_fit(source: str, tmp_path: Path, ranks_file: bytes) -> None:
    (Path(source) / "arcade100k.tiktoken").write_bytes(ranks_file)
    with pytest.raises(DataError, match="has 100289 ids, the model 1024; name the one it was"):
        export(source, tmp_path / "out")
    (Path(source) / "arcade100k.tiktoken").write_bytes(b"")
    line = export(source, tmp_path / "out")
    assert "; no tokenizer was written: tokenizer = " in line
    assert "get the file again" in line
    assert not list((tmp_path / "out").glob("tokenizer*"))
