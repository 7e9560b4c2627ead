"""`SLM2` item by item against lm-evaluation-harness's own model for transformers, on
the same weights in an exported folder, with both kinds of tokenizer.
"""

import random
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from slm2_minimal.config import DataError
from slm2_minimal.evaluate.harness import NEW_TOKENS, SLM2, generation
from slm2_minimal.evaluate.results import load_tasks
from slm2_minimal.export.tokenizer_files import write_tokenizer
from slm2_minimal.text.chat import TEMPLATES, render, stop_ids
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.tokenizer import SentencePieceTokenizer, Tokenizer, load_tokenizer
from tests.models import TINY, randomised

CONTEXT = 128
Pair = tuple[SLM2, HFLM]


@pytest.fixture(scope="module", params=["tiny", "arcade100k"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """(ours, theirs), with every parameter at random."""
    tokenizer = load_tokenizer(request.param)
    vocab_size = 1024 if request.param == "tiny" else 100_352
    eos = tokenizer.eos_token_id
    model = randomised(
        TINY.replace(
            vocab_size=vocab_size,
            max_position_embeddings=CONTEXT,
            bos_token_id=eos,
            eos_token_id=eos,
        )
    )
    folder = tmp_path_factory.mktemp("exported")
    model.save_pretrained(folder)
    write_tokenizer(folder, tokenizer, CONTEXT, TEMPLATES["zephyr"])
    # Its cache of logits takes wrong positions where two requests have the same ids but
    # other contexts: 25 of the local tasks', which come out right when asked alone.
    theirs = HFLM(
        pretrained=str(folder), device="cpu", dtype="float32", batch_size=8, logits_cache=False
    )
    return SLM2(model, tokenizer, format="zephyr"), theirs


def asked(kind: str, *arguments: Any) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("t", 3, 1))


def same_scores(both: Pair, requests: list[Instance]) -> None:
    """To 1e-4, or above a hundred nats to a millionth: theirs are sums in fp32."""
    ours, theirs = both
    for one, other in zip(
        ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True), strict=True
    ):
        assert one[0] == pytest.approx(other[0], abs=1e-4, rel=1e-6)
        assert one[1] is other[1]


def words(seed: int, count: int) -> str:
    choose = random.Random(seed)
    text = choose.choice(load_corpus()).text.split(" ")
    begin = choose.randrange(max(1, len(text) - count))
    return " ".join(text[begin : begin + count])


def test_log_likelihoods(both: Pair) -> None:
    """Texts of all languages, also longer than the context; and what a context may end
    in or be.
    """
    pairs = [(words(i, i % 90 + 1), " " + words(i + 1000, i % 9 + 1)) for i in range(60)]
    pairs += [
        ("", "A text alone"),
        ("Spaces   ", "move"),
        ("A line\n", "and one"),
        ("cafe\u0301 ", "n\u0303o"),
        ("One<|endoftext|>", "Two</s>"),
        ("7 + 12 =", " 19"),
    ]
    same_scores(both, [asked("loglikelihood", *pair) for pair in pairs])


def test_greedy_flags(both: Pair) -> None:
    """Of continuations that the model itself would write, and of those spoiled at their
    end.
    """
    ours, _ = both
    requests = []
    for seed in range(20):
        context = words(seed, 12)
        asked_for = asked("generate_until", context, {"until": [], "max_gen_toks": 3})
        [continuation] = ours.generate_until([asked_for])
        requests.append(asked("loglikelihood", context, continuation))
        requests.append(asked("loglikelihood", context, f"{continuation}!"))
    same_scores(both, requests)
    flags = [each.greedy for each in ours.loglikelihood(requests)]
    assert any(flags)
    assert not all(flags)


def every_request(limit: int | None) -> list[Instance]:
    """Of every local task of multiple choice."""
    requests = []
    for task in load_tasks(["local"])["tasks"].values():
        if task.OUTPUT_TYPE == "multiple_choice":
            task.build_all_requests(limit=limit)
            requests += task.instances
    return requests


def test_local_tasks(both: Pair) -> None:
    requests = every_request(2)
    assert len(requests) > 200
    same_scores(both, requests)


@pytest.mark.slow
def test_every_item_of_the_local_tasks(both: Pair) -> None:
    """With the vocabulary of 100,352, where theirs takes minutes, of every eighth."""
    requests = every_request(None)
    same_scores(both, requests[:: 1 if both[0].tokenizer.vocab_size < 2000 else 8])


def test_rolling(both: Pair) -> None:
    ours, theirs = both
    texts = ["", "a", words(1, 20), words(2, 400), words(3, 800), "cafe\u0301"]
    requests = [asked("loglikelihood_rolling", text) for text in texts]
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-6)


def test_greedy_texts(both: Pair) -> None:
    """Until a string, the end of text, or so many tokens. (What bytes that are no text
    become, transformers says in its own way.)
    """
    ours, theirs = both
    requests = []
    for number in range(48):
        until = [["e"], ["\n", " de"], []][number % 3]
        settings = {"until": until, "max_gen_toks": 12, "do_sample": False}
        requests.append(asked("generate_until", words(number, 2 * number + 1), settings))
    compared = [
        (one, other)
        for one, other in zip(
            ours.generate_until(requests),
            theirs.generate_until(requests, disable_tqdm=True),
            strict=True,
        )
        if "\N{REPLACEMENT CHARACTER}" not in one + other
    ]
    assert len(compared) >= 10
    for one, other in compared:
        assert one == other


def test_chat_templates(both: Pair) -> None:
    ours, theirs = both
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Wat is dit?"},
        {"role": "assistant", "content": "Een trein"},
    ]
    for count, add in ((2, True), (3, False), (3, True)):
        expected = theirs.apply_chat_template(messages[:count], add)
        found = ours.apply_chat_template(messages[:count], add)
        assert found == expected
        assert ours.tok_encode(found) == theirs.tok_encode(expected)
    assert ours.chat_template(True) == TEMPLATES["zephyr"]
    assert ours.chat_template(False) is None


def test_every_format_is_read_as_chat_reads_it(arcade: Tokenizer) -> None:
    model = randomised(TINY.replace(vocab_size=100_352))
    for format in TEMPLATES:
        ours = SLM2(model, arcade, format=format)
        message = {"role": "user", "content": "Hello"}
        ids, _ = render([message], format, tokenizer=arcade, generation_prompt=True)
        assert ours.tok_encode(ours.apply_chat_template([message])) == ids
        assert ours.stop_ids == stop_ids(format, arcade)


def test_no_format(tiny: SentencePieceTokenizer) -> None:
    ours = SLM2(randomised(TINY), tiny)
    with pytest.raises(DataError, match="format = None: no chat format; name the one"):
        ours.apply_chat_template([{"role": "user", "content": "a"}])
    with pytest.raises(DataError, match="format = 'chatml': the tokenizer 'tiny' has no ids"):
        SLM2(randomised(TINY), tiny, format="chatml")


def test_sampled_texts_are_those_of_torchs_seed(tiny: SentencePieceTokenizer) -> None:
    ours = SLM2(randomised(TINY), tiny)
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    requests = [asked("generate_until", "De", settings)] * 2
    written = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        written.append(ours.generate_until(requests))
    assert written[0] == written[1] != written[2]
    assert written[0][0] != written[0][1], "asked twice, it is drawn twice"


@pytest.mark.parametrize(
    ("settings", "until", "tokens", "temperature"),
    [
        ({}, [], NEW_TOKENS, 0),
        ({"until": "\n", "max_new_tokens": 7}, ["\n"], 7, 0),
        ({"until": ["", "a"], "max_gen_toks": 7, "max_tokens": 9}, ["a"], 7, 0),
        ({"do_sample": True}, [], NEW_TOKENS, 1),
        ({"temperature": 0.5}, [], NEW_TOKENS, 0.5),
        ({"do_sample": False, "temperature": 0.5}, [], NEW_TOKENS, 0),
        ({"do_sample": True, "temperature": 0.0}, [], NEW_TOKENS, 0),
    ],
)
def test_settings_of_a_task(
    settings: dict[str, Any], until: list[str], tokens: int, temperature: float
) -> None:
    found = generation(settings, 4096)
    assert found[:2] == (until, tokens)
    assert found[2].temperature == temperature


def test_a_short_context_leaves_half_for_the_text() -> None:
    assert generation({}, 64)[1] == 32


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_beams": 4}, "generation_kwargs.num_beams = 4: unknown here; known are until"),
        ({"max_gen_toks": 64}, "max_gen_toks = 64: must be at least 1, and leave room"),
        ({"temperature": -1.0, "do_sample": True}, "temperature = -1.0: must be"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        generation(settings, 64)


def test_what_cannot_be_scored(both: Pair) -> None:
    ours, _ = both
    with pytest.raises(DataError, match="task = 't': item 3 has an empty continuation"):
        ours.loglikelihood([asked("loglikelihood", "a", "")])
    with pytest.raises(DataError, match=r"requests\[0\].continuation = \d+ tokens: must have"):
        ours.loglikelihood([asked("loglikelihood", "a", words(5, 300))])
