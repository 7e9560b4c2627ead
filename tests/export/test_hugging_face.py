"""Exporting: what is written, what is refused, and that a failure leaves nothing."""

from pathlib import Path

import pytest
import torch

from slm2_minimal.config import CheckpointError, DataError, ModelConfig
from slm2_minimal.export.hugging_face import export
from slm2_minimal.model import hub
from slm2_minimal.model.transformer import StableLM2

SMALL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=48,
    bos_token_id=0,
    eos_token_id=0,
)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A model in a folder of Hugging Face's format."""
    StableLM2(SMALL).save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_weights_are_written(source: str, tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "above" / "out"
    line = export(source, out, dtype)  # type: ignore[arg-type]
    assert line == f"{out}: {SMALL.num_parameters():,} parameters in {dtype}"
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
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
def test_a_failure_leaves_nothing_behind(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    """The weights are written, and the disk is full at the last file."""

    def full(path: Path, content: object) -> None:
        path.with_name(f"{path.name}.part").touch()
        raise OSError("no space left on device")

    out = tmp_path / "above" / "out"
    if existed:
        out.mkdir(parents=True)
    monkeypatch.setattr(hub, "write_json", full)
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
