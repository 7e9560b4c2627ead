"""A conversation: what is read in each turn, that its answers are those of a fresh
start, what is dropped, how it stops, and the terminal.
"""

import io
from collections.abc import Iterator

import pytest
import torch

from slm2_minimal.config import DataError
from slm2_minimal.inference.chat import Chat, talk
from slm2_minimal.inference.generate import generate
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.chat import FORMATS, Format, render, stop_ids
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from tests.inference.conftest import SMALL, random_model

TEXTS = ["Hi there", "And the train?", "12 + 7", "Well"]


@pytest.fixture(scope="module")
def model() -> StableLM2:
    return random_model(SMALL.replace(max_position_embeddings=400))


@pytest.fixture
def read(model: StableLM2) -> Iterator[list[int]]:
    """How many tokens each forward of the model has read."""
    lengths: list[int] = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda block, inputs: lengths.append(inputs[0].shape[1])
    )
    yield lengths
    hook.remove()


def new_chat(
    model: StableLM2,
    tokenizer: SentencePieceTokenizer,
    format: Format = "zephyr",
    sampling: Sampling | None = None,
    tokens: int = 20,
    system: str | None = None,
) -> Chat:
    return Chat(model, tokenizer, format, sampling or Sampling(temperature=0), tokens, system)


@pytest.mark.parametrize("format", ["zephyr", "plain"])
def test_each_turn_reads_only_what_is_new(
    model: StableLM2, tiny: SentencePieceTokenizer, read: list[int], format: Format
) -> None:
    """And its answers are those of a model that reads everything again."""
    chat = new_chat(model, tiny, format, system="Be brief.")
    messages: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    before: list[int] = []
    for text in TEXTS:
        messages.append({"role": "user", "content": text})
        ids, _ = render(messages, format, tokenizer=tiny, generation_prompt=True)
        read.clear()
        answer = "".join(chat.ask(text))
        same = 0
        while same < len(before) and before[same] == ids[same]:
            same += 1
        assert read[0] == len(ids) - same
        assert set(read[1:]) == {1}
        before = chat.read

        stops = stop_ids(format, tiny)
        prompt = torch.tensor([ids])
        drawn = generate(model, prompt, 20, temperature=0, stop_ids=stops)[0, len(ids) :].tolist()
        fresh = tiny.decode([i for i in drawn if i not in stops])
        assert answer == fresh.removeprefix(" " if format == "plain" else "")
        messages.append({"role": "assistant", "content": answer})
        assert chat.messages == messages
    assert same > 60, "most of it was there"


def test_the_cache_is_cut_where_the_answer_is_rendered_otherwise(
    model: StableLM2, tiny: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sampled answer is seldom cut into ids as its text is; the next one is still
    that of a fresh start.
    """
    chat = new_chat(model, tiny, sampling=Sampling(temperature=2.0, seed=1))
    answer = "".join(chat.ask("Hi"))
    written = len(chat.read)
    ids, _ = render(chat.messages, tokenizer=tiny)
    assert chat.read != ids[:written], "the case is there"
    chat.sampling = Sampling(temperature=0)
    second = "".join(chat.ask("Ho"))
    fresh = new_chat(model, tiny)
    fresh.messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    assert "".join(fresh.ask("Ho")) == second


def test_seeds_give_each_turn_numbers_of_its_own(
    model: StableLM2, tiny: SentencePieceTokenizer
) -> None:
    chats = [new_chat(model, tiny, sampling=Sampling(seed=seed)) for seed in (1, 1, 2)]
    one, same, other = (["".join(chat.ask(text)) for text in TEXTS] for chat in chats)
    assert one == same != other
    chats[0].reset()
    assert "".join(chats[0].ask(TEXTS[0])) == one[0]


def test_an_answer_that_is_stopped(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    """Between two pieces, or inside of a forward: what was said stays, and the next
    answer is that of a fresh start.
    """
    for where in ("between", "inside"):
        chat = new_chat(model, tiny)
        "".join(chat.ask("Hi"))
        pieces = chat.ask("Ho")
        said = next(pieces) + next(pieces)
        if where == "inside":

            def interrupt(*_: object) -> None:
                raise KeyboardInterrupt

            hook = model.model.layers[1].register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                said += "".join(pieces)
            hook.remove()
        pieces.close()
        assert chat.messages[-1] == {"role": "assistant", "content": said}
        fresh = new_chat(model, tiny)
        fresh.messages = list(chat.messages)
        assert "".join(chat.ask("Why?")) == "".join(fresh.ask("Why?"))


def test_an_answer_that_was_never_begun(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    """Stopped while the message is read: it is forgotten."""
    chat = new_chat(model, tiny)
    hook = model.model.layers[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(chat.ask("Hi"))
    hook.remove()
    assert chat.messages == []
    assert "".join(chat.ask("Ho")) == "".join(new_chat(model, tiny).ask("Ho"))


def test_a_full_context_drops_the_oldest_turns(
    model: StableLM2, tiny: SentencePieceTokenizer
) -> None:
    chat = new_chat(model, tiny, system="Be brief.", tokens=30)
    chat.context = 200
    dropped = []
    for number in range(6):
        assert "".join(chat.ask(f"Message {number} of six"))
        dropped.append(chat.dropped)
        assert len(chat.read) <= 200
        assert chat.messages[0] == {"role": "system", "content": "Be brief."}
        assert chat.messages[-2]["content"] == f"Message {number} of six"
    assert dropped[0] == 0
    assert sum(dropped) == 6 - (len(chat.messages) - 1) // 2
    before = list(chat.messages)
    with pytest.raises(DataError, match=r"message = .* tokens: more than the 170"):
        chat.ask("word " * 400)
    assert chat.messages == before


def test_what_cannot_be(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    for tokens in (0, -1, 400):
        with pytest.raises(DataError, match=f"max_new_tokens = {tokens}: must be at least 1"):
            new_chat(model, tiny, tokens=tokens)
    with pytest.raises(DataError, match="format = 'chatml': the tokenizer 'tiny' has no ids"):
        new_chat(model, tiny, "chatml")
    with pytest.raises(DataError, match=r"message = .* tokens: more than the 380"):
        new_chat(model, tiny, system="word " * 400)
    with pytest.raises(DataError, match=r"messages\[0\].content = ' ': an empty turn"):
        new_chat(model, tiny, system=" ")
    assert set(FORMATS) == {"zephyr", "chatml", "plain"}


# The terminal


def said(
    chat: Chat, lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    talk(chat)
    return capsys.readouterr().out.split("\n")


def test_a_chat_through_a_pipe(
    model: StableLM2,
    tiny: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = new_chat(model, tiny)
    answers = ["".join(chat.ask(text)) for text in TEXTS[:2]]
    chat.reset()
    lines = f"{TEXTS[0]}\n\n{TEXTS[1]}\n/reset\n{TEXTS[0]}\n/quit\nnever read\n"
    out = said(chat, lines, monkeypatch, capsys)
    assert "\n".join(out) == "\n".join([*answers, answers[0], ""])
    assert len(chat.messages) == 2
    assert said(chat, "", monkeypatch, capsys) == [""]


def test_what_the_terminal_says(
    model: StableLM2,
    tiny: SentencePieceTokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chat = new_chat(model, tiny, tokens=30)
    chat.context = 150
    out = said(chat, "word " * 400 + "\nHi\n", monkeypatch, capsys)
    assert out[0].startswith("(message = ")
    assert "shorten it" in out[0]
    out = said(chat, "Hi once more\n" * 5, monkeypatch, capsys)
    assert "(the context of 150 is full: 1 oldest turns dropped)" in out

    # Ctrl-C, in an answer and while none is written
    forwards = iter(range(10**6))

    def interrupt(*_: object) -> None:
        if next(forwards) == 5:
            raise KeyboardInterrupt

    hook = model.model.layers[0].register_forward_pre_hook(interrupt)
    out = said(chat, "Hi\nHo\n", monkeypatch, capsys)
    hook.remove()
    assert out.count("(stopped)") == 1
    assert [m["content"] for m in chat.messages if m["role"] == "user"][-2:] == ["Hi", "Ho"]

    def no_more(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", no_more)
    talk(chat)
