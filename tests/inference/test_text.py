"""Text: pieces, stop strings, prompts in a batch, lookup."""

import itertools

import pytest
import torch

from slm2_minimal.config import DataError
from slm2_minimal.inference.generate import generate
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.inference.text import Writer, stream_text, write_out, write_texts
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from slm2_minimal.text.tokenizer import Tokenizer


def test_text_streams(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    pieces = list(stream_text(model, tiny, "De fiets", 20, Sampling(seed=1)))
    assert len(pieces) > 1
    ids = torch.tensor([tiny.encode("De fiets")])
    drawn = generate(model, ids, 20, seed=1, stop_ids=[0])[0, ids.shape[1] :].tolist()
    assert "".join(pieces) == tiny.decode([i for i in drawn if i != 0])
    assert "".join(stream_text(model, tiny, "", 5, Sampling(seed=1))), "a text of its own"
    with pytest.raises(DataError, match="max_new_tokens = 48"):
        stream_text(model, tiny, "", 48, Sampling())


def pieces_of(tokenizer: Tokenizer, text: str, stops: tuple[str, ...]) -> list[str]:
    return list(write_out(tokenizer.encode(text), Writer(tokenizer, (), stops)))


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("four",), "one two three"),
        ("one two thr", ("three",), "one two thr"),  # what was held back comes at the end
        ("aab", ("ab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("one\n\ntwo", ("\n\n",), "one"),
        ("x one two", ("one two", "ne"), "x o"),  # what is whole first ends the text
        ("x\nUser: y", ("User:", "\nUser:"), "x"),  # and of those the longest
        ("\U0001f989\U0001f989 é", ("é",), "\U0001f989\U0001f989 "),
        ("stop", ("stop",), ""),
    ],
)
def test_stop_strings(
    tokenizer: Tokenizer, text: str, stops: tuple[str, ...], expected: str
) -> None:
    assert "".join(pieces_of(tokenizer, text, stops)) == expected


def test_stop_strings_do_not_depend_on_the_pieces(tiny: SentencePieceTokenizer) -> None:
    """All texts of six letters, cut letter by letter or as the tokenizer does."""
    stops = ("aba", "bb", "cab")
    for letters in itertools.product("abc", repeat=6):
        text = "".join(letters)
        ends = [(text.find(s) + len(s), -len(s), text.find(s)) for s in stops if s in text]
        expected = text[: min(ends)[2]] if ends else text
        assert "".join(pieces_of(tiny, text, stops)) == expected
        by_letter = [i for letter in letters for i in tiny.encode(letter)]
        assert "".join(write_out(by_letter, Writer(tiny, (), stops))) == expected


def test_a_piece_comes_as_soon_as_it_is_sure(tiny: SentencePieceTokenizer) -> None:
    writer = Writer(tiny, [0], ("ab",))
    letters = {letter: tiny.encode(letter)[-1] for letter in "abx"}
    pushed = [writer.push(letters[letter]) for letter in "xaax"]
    assert pushed == ["x", "", "a", "ax"]
    assert [writer.push(letters["a"]), writer.ended, writer.push(0)] == ["", False, "a"]
    assert writer.ended
    assert writer.push(letters["x"]) == writer.finish() == ""


def test_a_batch_is_its_texts_alone(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    prompts, sampling = ["De fiets", "Le", "", "Ein Zug fährt"], Sampling(seed=4)
    texts = write_texts(model, tiny, prompts, 20, sampling, samples=2)
    first = ["".join(stream_text(model, tiny, prompt, 20, sampling)) for prompt in prompts]
    assert [samples[0] for samples in texts] == first
    assert all(one != other for one, other in texts)

    stop = first[1][2]
    stopped = write_texts(model, tiny, prompts, 20, sampling, samples=2, stop_strings=[stop])
    assert stopped == [[text.split(stop)[0] for text in samples] for samples in texts]


def test_a_batch_ends_with_its_last_text(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    steps = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda *_: steps.append(1))
    texts = write_texts(model, tiny, ["a"], 30, Sampling(seed=1), samples=2)
    both = {char for char in texts[0][0][:4] if char in texts[0][1]}
    steps.clear()
    write_texts(model, tiny, ["a"], 30, Sampling(seed=1), samples=2, stop_strings=both)
    hook.remove()
    assert both
    assert len(steps) < 30


def test_lookup(model: StableLM2, tiny: SentencePieceTokenizer) -> None:
    greedy = Sampling(temperature=0)
    for prompt in ("De fiets", "la la la la la la la"):
        plain = "".join(stream_text(model, tiny, prompt, 20, greedy))
        assert "".join(stream_text(model, tiny, prompt, 20, greedy, lookup=True)) == plain
    for sampling in (Sampling(), Sampling(temperature=0, repetition_penalty=1.1)):
        with pytest.raises(DataError, match="lookup = true: is for greedy text alone"):
            stream_text(model, tiny, "a", 5, sampling, lookup=True)


def test_an_empty_stop_string(tiny: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match="stop = ''"):
        Writer(tiny, (), ("a", ""))
