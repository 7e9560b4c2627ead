"""`slm2 evaluate retrieval` as it is typed."""

from pathlib import Path

import pytest

from slm2_minimal import evaluating_retrieval
from slm2_minimal.config import DataError
from slm2_minimal.evaluate.endpoint import Endpoint
from slm2_minimal.evaluate.retrieval import Outcome, Probe, Settings, make_probe, score_probes
from slm2_minimal.files import read_json
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from tests.commands import Run, says
from tests.models import TINY, randomised

CELLS = ("--kinds", "passkey,key-value", "--languages", "en,pt", "--samples", 2)


@pytest.fixture(scope="module")
def model() -> StableLM2:
    return randomised(TINY.replace(max_position_embeddings=200))


@pytest.fixture
def command(model: StableLM2, tmp_path: Path) -> tuple[object, ...]:
    """With a model, in the folder `out`."""
    model.save_pretrained(tmp_path / "model")
    words = ("evaluate", "retrieval", tmp_path / "model", "--tokenizer", "tiny")
    return (*words, "--device", "cpu", "--out", tmp_path / "out")


def test_results_and_picture(
    command: tuple[object, ...],
    slm2: Run,
    model: StableLM2,
    tiny: SentencePieceTokenizer,
    tmp_path: Path,
) -> None:
    code, out, err = slm2(*command, *CELLS, "--depths", "0,0.5", "--seed", 3)
    assert (code, err) == (0, "")
    results = read_json(tmp_path / "out" / "retrieval.json")
    assert results["settings"]["lengths"] == [50, 100, 200]
    assert len(results["cells"]) == 2 * 2 * 3 * 2
    assert (tmp_path / "out" / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    assert out.count("% found\n") == 2 * 2 * 3
    assert "\nlanguage       passkey   key-value\nen " in out

    settings = Settings(digits=5, seed=3)
    cell = results["cells"][-1]
    assert (cell["kind"], cell["language"], cell["length"]) == ("key-value", "pt", 200)
    for number, margin in enumerate(cell["margin"]):
        probe = make_probe(tiny, settings, "key-value", "pt", 200, 0.5, number)
        [outcome] = score_probes(model, tiny, [probe])
        assert outcome.margin == pytest.approx(margin, abs=1e-4)
        assert outcome.exact == cell["exact"][number]


def test_what_was_found_before_a_failure_stays(
    slm2: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    def outcomes(endpoint: Endpoint, probes: list[Probe]) -> list[Outcome]:
        nonlocal asked
        asked += 1
        if asked == 3:
            raise DataError("endpoint: gone")
        return [Outcome(True, None)] * len(probes)

    monkeypatch.setattr(Endpoint, "outcomes", outcomes)
    words = ("--endpoint", "http://localhost:1/v1", "--model-name", "toy", "--lengths", "60,90")
    out = tmp_path / "out"
    words = ("evaluate", "retrieval", *words, *CELLS, "--tokenizer", "tiny", "--out", out)
    says(slm2(*words), 2, "endpoint: gone")
    results = read_json(out / "retrieval.json")
    assert results["model"] == "toy"
    assert results["endpoint"] == "http://localhost:1/v1"
    assert [cell["language"] for cell in results["cells"]] == ["en"] * 2 * 5
    assert {cell["length"] for cell in results["cells"]} == {60, 90}
    assert results["cells"][0]["exact"] == [True, True]
    assert results["cells"][0]["margin"] == [None, None]

    before = (out / "retrieval.json").read_bytes()
    says(slm2(*words), 2, "has a retrieval.json already; name another folder")
    assert (out / "retrieval.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--kinds", "passkeys"], "kinds = 'passkeys': unknown"),
        (["--kinds", ""], "kinds = ''"),
        (["--languages", "en,xx"], "languages = 'xx'"),
        (["--lengths", "100,300"], "lengths = 300: longer than the model's context; give at most"),
        (["--lengths", "100,ten"], "invalid list of integers"),
        (["--lengths", "5"], "lengths = 5: what passkey tells and asks needs"),
        (["--depths", "2"], "depths = 2.0"),
        (["--depths", "nan"], "depths = nan"),
        (["--samples", "0"], "samples = 0"),
        (["--haystack", "hay"], "invalid choice: 'hay'"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--model-name", "x"], "goes with --endpoint"),
        (["--endpoint", "http://localhost/v1"], "goes not with --endpoint"),
        (["--out", ""], "out = ''"),
        (["--train.steps", "3"], "unknown; see slm2 evaluate retrieval --help"),
    ],
)
def test_bad_options(
    words: list[str], part: str, command: tuple[object, ...], slm2: Run, tmp_path: Path
) -> None:
    says(slm2(*command, *words), 2, part)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "model: missing"),
        (["nowhere"], "nowhere"),
        (["--endpoint", "http://localhost/v1"], "--model-name: is needed with --endpoint"),
        (["--endpoint", "http://localhost/v1", "--model-name", "x"], "--lengths: is needed"),
        (["--endpoint", "ftp://x", "--model-name", "x", "--lengths", "60"], "must be like http"),
    ],
)
def test_what_is_asked(
    words: list[str], part: str, slm2: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    says(slm2("evaluate", "retrieval", *words), 2, part)
    assert not list(tmp_path.iterdir())


def test_the_picture_needs_matplotlib(
    command: tuple[object, ...], slm2: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the work."""
    monkeypatch.setattr(evaluating_retrieval.importlib.util, "find_spec", lambda name: None)
    says(slm2(*command), 2, "the package 'matplotlib': pip install 'slm2-minimal[book]'")
