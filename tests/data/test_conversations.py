"""Conversations as sequences: what is learned, where cuts fall, and that neither the
packing nor a token that is not learned changes a gradient.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.config import IGNORE, DataConfig, RunConfig, SourceConfig
from slm2_minimal.data.conversations import Conversations, summary
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import UNLEARNED, TokenStream
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.model.loss import token_log_probs
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.chat import FORMATS, render
from slm2_minimal.text.conversations import embedded_instructions, messages_of
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from slm2_minimal.train.step import accumulate_gradients
from tests.complaints import config_error, data_error
from tests.models import TINY, randomised

LENGTH = 96  # of sequences
MODEL = TINY.replace(max_position_embeddings=LENGTH)
TEXTS = [document.text for document in embedded_instructions() if document.language == "en"][:12]
CHAT = SourceConfig(format="chat", languages=["en"])


def config(**changes: Any) -> DataConfig:
    table = {"tokenizer": "tiny", "seq_len": LENGTH, "sources": {"a": CHAT}}
    return DataConfig(**table | changes)


def encoded(tokenizer: Tokenizer, texts: list[str], seq_len: int = LENGTH) -> TokenStream:
    ids, lengths = Conversations(tokenizer, "zephyr", seq_len).encode_documents(texts)
    return TokenStream.from_lengths(ids, lengths, tokenizer.eos_token_id)


def batch_of(stream: TokenStream, seq_len: int = LENGTH) -> Batch:
    count = stream.num_sequences(seq_len)
    return Batch.stack([stream.sequence(index, seq_len) for index in range(count)])


# What is learned


@pytest.mark.parametrize("format", FORMATS)
def test_ids_and_marks_are_those_of_render(arcade: Tokenizer, format: Any) -> None:
    for text in TEXTS:
        ids, learned = render(messages_of(text), format, tokenizer=arcade)
        tokens, lengths = Conversations(arcade, format, 4096).encode_documents([text])
        assert (tokens & ~UNLEARNED).tolist() == ids
        assert (tokens < UNLEARNED).tolist() == learned
        assert lengths.tolist() == [len(ids)]


def test_labels_are_the_answers(tiny: SentencePieceTokenizer) -> None:
    """Read back, they are what the assistant says, and the end of text after each."""
    text = json.dumps(
        [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "It rains."},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "No."},
        ]
    )
    sequence = encoded(tiny, [text], 64).laid_out(64).sequence(0, 64)
    labels = sequence.labels[sequence.labels != IGNORE].tolist()
    end = tiny.decode([tiny.eos_token_id])
    assert tiny.decode(labels) == f"It rains.{end}No.{end}"
    assert labels.count(tiny.eos_token_id) == 2
    places = np.flatnonzero(sequence.labels != IGNORE)
    assert (sequence.input_ids[places + 1] == labels).all()


# Where cuts fall


def test_layout_by_hand() -> None:
    """Documents of 3, 2, 2 and 1 tokens in sequences of 4, 0 the end of text: the last
    goes where it leaves no room.
    """
    unlearned = int(UNLEARNED)
    tokens = np.asarray([1, 2, 3, 4, 5, 6, 7 + unlearned, 8], dtype=np.uint32)
    stream = TokenStream.from_lengths(tokens, np.asarray([3, 2, 2, 1]), eos=0).laid_out(4)
    assert stream.tokens.tolist() == [1, 2, 3, 8, 4, 5, 6, 7 + unlearned]
    assert stream.starts.tolist() == [0, 3, 4, 6]
    no = IGNORE
    assert stream.sequence(0, 4).labels.tolist() == [2, 3, no, no]
    assert stream.sequence(1, 4).labels.tolist() == [5, no, no, no]
    assert stream.sequence(1, 4).input_ids.tolist() == [4, 5, 6, 7]

    stream = TokenStream.from_lengths(tokens[:3], np.asarray([3]), eos=0).laid_out(5)
    assert stream.tokens.tolist() == [1, 2, 3, unlearned, unlearned]
    assert stream.starts.tolist() == [0, 3]


@given(lengths=st.lists(st.integers(1, 9), max_size=30))
def test_no_cut_falls_into_a_document(lengths: list[int]) -> None:
    tokens = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    stream = TokenStream.from_lengths(tokens, np.asarray(lengths, dtype=np.int64), eos=0)
    laid_out = stream.laid_out(9)
    ends = [*laid_out.starts[1:].tolist(), laid_out.num_tokens][: len(laid_out.starts)]
    documents = [laid_out.tokens[a:b] for a, b in zip(laid_out.starts, ends, strict=True)]
    assert all(a // 9 == (b - 1) // 9 for a, b in zip(laid_out.starts, ends, strict=True))
    assert laid_out.num_tokens % 9 == 0

    real = [document.tolist() for document in documents if document[0] < UNLEARNED]
    starts = np.cumsum(lengths) - lengths if lengths else []
    whole = [list(range(a + 1, a + 1 + n)) for a, n in zip(starts, lengths, strict=True)]
    assert sorted(real) == whole
    padding = [document for document in documents if document[0] >= UNLEARNED]
    assert all((document == UNLEARNED).all() for document in padding)  # the end of text is 0
    # two half-empty sequences would have been one
    rooms = [len(document) for document in padding]
    assert sum(room > 4 for room in rooms) <= 1


def test_long_ones_are_cut_by_whole_turns(tiny: SentencePieceTokenizer) -> None:
    turns = [
        {"role": role, "content": f"{role} says {number}"}
        for number in range(5)
        for role in ("user", "assistant")
    ]
    text = json.dumps(turns)
    sizes = [len(render(turns[:end], tokenizer=tiny)[0]) for end in range(1, 11)]
    for seq_len, kept in ((sizes[9], 10), (sizes[9] - 1, 8), (sizes[4], 4), (sizes[1], 2)):
        conversations = Conversations(tiny, "zephyr", seq_len)
        tokens, _ = conversations.encode_documents([text])
        assert (tokens & ~UNLEARNED).tolist() == render(turns[:kept], tokenizer=tiny)[0]
        assert conversations.counts["shortened"] == (kept < 10)

    conversations = Conversations(tiny, "zephyr", sizes[1] - 1)
    _, lengths = conversations.encode_documents([text, text])
    assert lengths.tolist() == [0, 0]
    assert conversations.counts == {"left out": 2}


def test_counts(tiny: SentencePieceTokenizer) -> None:
    conversations = Conversations(tiny, "zephyr", LENGTH)
    ids, lengths = conversations.encode_documents(TEXTS)
    stream = TokenStream.from_lengths(ids, lengths, tiny.eos_token_id)
    laid_out = conversations.lay_out(stream.only(lengths > 0))
    counts = conversations.counts
    assert counts["tokens"] == laid_out.num_tokens
    assert counts["learned"] == batch_of(laid_out).valid_tokens
    assert counts["padding"] == laid_out.num_tokens - len(ids)
    counts = {"tokens": 200, "learned": 50, "padding": 10, "shortened": 1_000, "left out": 2}
    assert summary(counts) == (
        "of the tokens 25.0% are learned and 5.0% are padding; conversations cut to the turns that"
        " a sequence holds: 1,000, left out because it holds none: 2"
    )
    assert summary({}).startswith("of the tokens 0.0%")


# Gradients


def gradients(model: StableLM2, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    accumulate_gradients(model, [batch])
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_packed_is_unpacked(tiny: SentencePieceTokenizer) -> None:
    """One gradient, whether conversations share sequences or have one each."""
    model = randomised(MODEL)
    stream = encoded(tiny, TEXTS)
    stream = stream.only(np.diff(stream.starts, append=stream.num_tokens) > 0)
    packed = batch_of(stream.laid_out(LENGTH))
    count = len(stream.starts)
    alone = [stream.only(np.arange(count) == i).laid_out(LENGTH) for i in range(count)]
    unpacked = batch_of(TokenStream.joined(alone))
    assert len(packed.labels) < len(unpacked.labels) == count
    assert packed.valid_tokens == unpacked.valid_tokens > 0
    ours, theirs = gradients(model, packed), gradients(model, unpacked)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_what_is_not_learned_has_no_gradient(tiny: SentencePieceTokenizer) -> None:
    """Exactly none at the hidden states that would predict it; and the loss is that of
    all tokens, written out, with the others struck off.
    """
    model = randomised(MODEL)
    batch = batch_of(encoded(tiny, TEXTS).laid_out(LENGTH))
    states: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        states.append(output)

    hook = model.model.norm.register_forward_hook(keep)
    loss = accumulate_gradients(model, [batch])
    hook.remove()
    ignored = batch.labels == IGNORE
    gradient = states[0].grad
    assert gradient is not None
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).any(-1).all()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    every = torch.cat([batch.input_ids[:, 1:], torch.zeros_like(batch.labels[:, :1])], dim=1)
    model.zero_grad()
    scores = model(
        batch.input_ids, batch.position_ids, batch.document_ids,
        head=partial(token_log_probs, labels=every),
    )  # fmt: skip
    by_hand = -(scores * ~ignored).sum() / batch.valid_tokens
    by_hand.backward()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_other_ids_that_are_not_learned_change_no_label(tiny: SentencePieceTokenizer) -> None:
    """A batch whose only label is one answer's last token has the gradient of it alone,
    whatever stands in the places of the other labels.
    """
    model = randomised(MODEL)
    batch = batch_of(encoded(tiny, TEXTS[:1]).laid_out(LENGTH))
    last = (batch.labels[0] != IGNORE).nonzero().max()
    marked = encoded(tiny, TEXTS[:1]).laid_out(LENGTH)
    tokens = marked.tokens | UNLEARNED
    tokens[last + 1] &= ~UNLEARNED
    only = batch_of(replace(marked, tokens=tokens))
    assert only.valid_tokens == 1
    by_hand = replace(batch, labels=torch.full_like(batch.labels, IGNORE))
    by_hand.labels[0, last] = batch.labels[0, last]
    ours, theirs = gradients(model, only), gradients(model, by_hand)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# From a table


def test_the_unigram_counts_what_is_learned(tiny: SentencePieceTokenizer) -> None:
    data = open_training_data(config(), tiny)
    [stream] = data.loader.streams
    assert isinstance(stream, TokenStream)
    learned = stream.tokens[stream.tokens < UNLEARNED]
    assert list(data.token_counts) == list(data.held_out) == ["en"]
    assert data.token_counts["en"].tolist() == np.bincount(learned, minlength=1024).tolist()
    assert data.held_out["en"].num_tokens % LENGTH == 0
    held_out = batch_of(data.held_out["en"])
    assert 0 < held_out.valid_tokens < 0.6 * held_out.labels.numel()


def test_what_is_said(tiny: SentencePieceTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        open_training_data(config(), tiny)
    [line] = [record.message for record in caplog.records if "learned" in record.message]
    assert "are padding" in line


def test_a_format_without_ids(tiny: SentencePieceTokenizer) -> None:
    message = data_error(lambda: open_training_data(config(chat="chatml"), tiny))
    assert message.startswith("data.chat = 'chatml': the tokenizer 'tiny' has no ids for <|im_")


def test_text_and_conversations_do_not_mix() -> None:
    sources = {"text": SourceConfig(), "a": CHAT}
    message = config_error(lambda: config(sources=sources))
    assert message.startswith("data.sources.a.format = 'chat': other sources are text")
    tables = {"data": {"sources": {"a": {"format": "chat"}}}, "prepare": {"contaminated": "cut"}}
    message = config_error(lambda: RunConfig.from_dict(tables))
    assert message.startswith("prepare.contaminated = 'cut': would cut through a turn")


def test_no_conversation_at_all(tiny: SentencePieceTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": []}\n{"text": "Why?"}\n')
    sources = {"a": SourceConfig(format="chat", path=str(path))}
    message = data_error(lambda: open_training_data(config(sources=sources), tiny))
    assert message.startswith("data.sources.a: no document in")
    assert "(left out: 2 no conversation)" in message
