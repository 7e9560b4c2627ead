"""`slm2 generate` and `slm2 chat` as they are typed."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slm2_minimal.cli import main
from slm2_minimal.config import RunConfig
from slm2_minimal.inference.generate import generate
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.inference.text import stream_text
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.chat import TEMPLATES
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from slm2_minimal.train.trainer import Trainer
from tests.commands import write_config
from tests.inference.conftest import SMALL, random_model

Slm2 = Callable[..., str]
CONFIG = SMALL.replace(max_position_embeddings=96)
SEEDED = ("--seed", 5, "--max-new-tokens", 12)


@pytest.fixture(scope="module")
def model() -> StableLM2:
    return random_model(CONFIG)


@pytest.fixture
def folder(model: StableLM2, tmp_path: Path) -> Path:
    """The model in Hugging Face's format."""
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def slm2(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Slm2:
    """`slm2(command, *words, stdin=...)`: what the command prints, with the model of
    `folder` and the tiny tokenizer, or the one line in which it refuses.
    """

    def run(command: str, *words: object, stdin: bytes = b"", refused: bool = False) -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        named = [command, folder, "--tokenizer", "tiny", *words]
        try:
            code = main([str(word) for word in named])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert code == (2 if refused else 0), (out, err)
        if not refused:
            assert err == ""
            return out
        assert out == ""
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture
def alone(model: StableLM2, tiny: SentencePieceTokenizer) -> Callable[[str], str]:
    """A prompt and its continuation by the package itself."""
    sampling = Sampling(0.7, top_p=0.95, seed=5)
    return lambda prompt: prompt + "".join(stream_text(model, tiny, prompt, 12, sampling))


def test_one_prompt(slm2: Slm2, alone: Callable[[str], str]) -> None:
    assert slm2("generate", "--prompt", "Der Zug", *SEEDED) == f"{alone('Der Zug')}\n"
    assert slm2("generate", *SEEDED) == f"{alone('')}\n", "free text"
    assert slm2("generate", "--prompt", "", *SEEDED) == f"{alone('')}\n"


def test_several_prompts(slm2: Slm2, alone: Callable[[str], str], tmp_path: Path) -> None:
    """From arguments, a file and standard input: each is what it is alone."""
    prompts = ["Der Zug kam", "Le", "12 + 7 ="]
    expected = "".join(
        f"--- prompt {number}, sample 1\n{alone(prompt)}\n"
        for number, prompt in enumerate(prompts, 1)
    )
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    assert slm2("generate", *words, *SEEDED) == expected
    lines = b"\xef\xbb\xbf" + "\r\n".join([*prompts, "", " "]).encode()  # as Windows has them
    (tmp_path / "prompts.txt").write_bytes(lines)
    assert slm2("generate", "--file", tmp_path / "prompts.txt", *SEEDED) == expected
    assert slm2("generate", "--file", "-", *SEEDED, stdin=lines) == expected
    both = slm2("generate", *words[:2], "--file", "-", *SEEDED, stdin=b"Le\n12 + 7 =")
    assert both == expected
    page = "a\x0cb\u2028c"  # no line ends inside it
    assert slm2("generate", "--file", "-", *SEEDED, stdin=page.encode()) == alone(page) + "\n"


def test_groups_of_prompts(
    slm2: Slm2, alone: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slm2_minimal.writing.ROWS", 4)
    prompts = [f"Word {number}" for number in range(5)]
    lines = "\n".join(prompts).encode()
    out = slm2("generate", "--file", "-", "--samples", 2, *SEEDED, stdin=lines)
    for number, prompt in enumerate(prompts, 1):
        assert f"--- prompt {number}, sample 1\n{alone(prompt)}\n--- prompt {number}" in out
    assert out.count("--- prompt") == 10


def test_samples(slm2: Slm2, alone: Callable[[str], str]) -> None:
    out = slm2("generate", "--prompt", "Le", "--samples", 3, *SEEDED)
    texts = out.split("--- prompt 1, sample ")[1:]
    assert texts[0] == f"1\n{alone('Le')}\n"
    assert len({text[2:] for text in texts}) == 3


def test_options_of_drawing(slm2: Slm2, model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    ids = torch.tensor([tiny.encode("Le")])
    words = ("--temperature", 1.5, "--top-k", 50, "--top-p", 0.9, "--min-p", 0.02)
    out = slm2("generate", "--prompt", "Le", *words, "--repetition-penalty", 1.3, *SEEDED)
    options = {"temperature": 1.5, "top_k": 50, "top_p": 0.9, "min_p": 0.02}
    drawn = generate(model, ids, 12, **options, repetition_penalty=1.3, seed=5, stop_ids=[0])
    assert out == f"Le{tiny.decode(i for i in drawn[0, ids.shape[1] :].tolist() if i)}\n"


def test_stop_strings_and_lookup(slm2: Slm2) -> None:
    greedy = ("generate", "--prompt", "la la la la", "--temperature", 0, "--max-new-tokens", 40)
    whole = slm2(*greedy)
    assert slm2(*greedy, "--lookup") == whole
    stop = whole[20:22]
    cut = whole.index(stop, len("la la la la"))
    assert slm2(*greedy, "--stop", stop, "--stop", "never") == f"{whole[:cut]}\n"


def test_without_a_length_it_writes_what_there_is_room_for(
    slm2: Slm2, model: StableLM2, tiny: SentencePieceTokenizer
) -> None:
    prompt = "Der Zug "
    room = CONFIG.max_position_embeddings - len(tiny.encode(prompt))
    written = "".join(stream_text(model, tiny, prompt, room, Sampling(temperature=0)))
    assert room < 128
    assert slm2("generate", "--prompt", prompt, "--temperature", 0) == f"{prompt}{written}\n"
    full = tiny.decode(tiny.encode("la " * 200)[: CONFIG.max_position_embeddings])
    assert "ask for at most" in slm2("generate", "--prompt", full, refused=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--file", "nowhere.txt"), "file = 'nowhere.txt': No such file or directory; give one"),
        (("--file", "."), "file = '.': Is a directory"),
        (("--file", "-"), "file = '-': holds no prompt; write one a line"),
        (("--stop", ""), "stop = '': would end every text"),
        (("--samples", 0), "samples = 0: must be at least 1"),
        (("--samples", "many"), "--samples: invalid integer value"),
        (("--min-p", 0), "min_p = 0.0"),
        (("--repetition-penalty", -1), "repetition_penalty = -1.0"),
        (("--lookup",), "lookup = true: is for greedy text alone"),
        (("--lookup", "--temperature", 0, "--samples", 2), "--lookup: writes one text"),
        (("--prompt", "a " * 200), "tokens: more than the context of 96; shorten it"),
        (("--prompt", "a", "--prompt", "a " * 200), "prompt 2 = "),
        (("--prompt", "a", "--max-new-tokens", 96), "ask for at most 9"),
    ],
    ids=str,
)
def test_what_generate_refuses(slm2: Slm2, words: tuple[object, ...], message: str) -> None:
    assert message in slm2("generate", *words, refused=True)


def test_prompts_that_are_no_text(slm2: Slm2) -> None:
    refusal = slm2("generate", "--file", "-", stdin=b"caf\xe9", refused=True)
    assert "file = '-': is not UTF-8 text" in refusal


def test_a_folder_without_a_tokenizer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate"], ["chat", "--format", "plain"]):
        assert main([*command, str(folder)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "has none, and its 1024 ids are not arcade100k's; name the one" in err


def test_a_chat(slm2: Slm2, folder: Path) -> None:
    """The format is the folder's, or the one that is named."""
    words = ("--seed", 3, "--max-new-tokens", 16, "--system", "Be brief.")
    stdin = b"Hi\nHo\n/quit\n"
    refusal = slm2("chat", *words, stdin=stdin, refused=True)
    assert "has no chat template; say by --format what the model was tuned for" in refusal
    named = {
        format: slm2("chat", *words, "--format", format, stdin=stdin)
        for format in ("zephyr", "plain")
    }
    assert named["zephyr"].count("\n") >= 2
    assert named["zephyr"] != named["plain"]
    for format, expected in named.items():
        content = {"chat_template": TEMPLATES[format]}
        (folder / "tokenizer_config.json").write_text(json.dumps(content))
        assert slm2("chat", *words, stdin=stdin) == expected


def test_a_run_speaks_plainly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trainer.from_config(RunConfig.load(write_config(tmp_path))).run()
    capsys.readouterr()
    for folder in (tmp_path / "run", next(tmp_path.glob("run/step-*"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO("Hi\n"))
            assert main(["chat", str(folder), "--max-new-tokens", "5"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("(plain lines of User: and Assistant:, since this run was tuned")
        assert err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "alpaca"), "--format: invalid choice: 'alpaca'"),
        (("--format", "chatml"), "format = 'chatml': the tokenizer 'tiny' has no ids"),
        (("--format", "zephyr", "--max-new-tokens", 0), "max_new_tokens = 0: must be at least 1"),
        (("--format", "zephyr", "--max-new-tokens", 96), "max_new_tokens = 96: must be"),
        (("--format", "zephyr", "--system", "a " * 200), "tokens: more than the 48"),
        (("--format", "zephyr", "--system", " "), "messages[0].content = ' ': an empty turn"),
        (("--format", "zephyr", "--temperature", -1), "temperature = -1.0"),
    ],
    ids=str,
)
def test_what_chat_refuses(slm2: Slm2, words: tuple[object, ...], message: str) -> None:
    assert message in slm2("chat", *words, stdin=b"Hi\n", refused=True)
