"""Tokenising many texts at once gives every one the ids that it has alone, whatever
stands in it or next to it.
"""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from slm2_minimal.config import DataConfig, PrepareConfig, SourceConfig
from slm2_minimal.prepare.work import STARTS, Job, ingest_source, tokenise_unit
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import Document, is_validation
from slm2_minimal.text.tokenizer import Arcade100k, Tokenizer

PIECES = [
    "<|endoftext|>",
    "<|endof",
    "text|>",
    "<|im_start|>",
    "word",
    " word",
    "'s",
    "7",
    "é",
    "你好",
    "🙂",
    " ",
    "   ",
    "\n",
    "\r\n",
    "\t",
    "\x00",
]


def encoded_at_once(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The ids of each text as `encode_documents` lays them out, behind each of which
    stands the end of text.
    """
    ids, lengths = tokenizer.encode_documents(texts)
    assert ids.dtype == np.uint32
    assert len(lengths) == len(texts)
    documents = np.split(ids, np.cumsum(lengths))
    assert len(documents.pop()) == 0
    assert all(document[-1] == tokenizer.eos_token_id for document in documents)
    return [document[:-1].tolist() for document in documents]


@given(texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), max_size=8))
@example(texts=[])
@example(texts=["", "a", ""])
@example(texts=["a <|endof", "text|> b"])
@example(texts=["ends in blanks   ", "   begins with them", "\n"])
@example(texts=["one", "two <|endoftext|> three", "four"])
@settings(max_examples=400)
def test_many_texts_at_once_have_the_ids_of_each_alone(
    tokenizer: Tokenizer, texts: list[str]
) -> None:
    texts = [unicodedata.normalize("NFC", text) for text in texts]
    assert encoded_at_once(tokenizer, texts) == [tokenizer.encode(text) for text in texts]


def test_blanks_that_tiktoken_cannot_take_among_many_texts(arcade: Arcade100k) -> None:
    texts = ["before", "table" + " " * 1_000_064, " after", "table" + " " * 1_000_064 + "end"]
    assert encoded_at_once(arcade, texts) == [arcade.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("batch", "quoted"), [(1, True), (3_000, True), (1 << 18, True), (1 << 18, False)]
)
def test_a_unit_holds_its_documents(
    tmp_path: Path, arcade: Arcade100k, monkeypatch: Any, batch: int, quoted: bool
) -> None:
    monkeypatch.setattr("slm2_minimal.data.reading.BATCH", batch)
    documents = load_corpus(languages=["de", "en"], domains=["letters"])
    if quoted:
        documents.insert(
            3, Document("quoted", "en", "", "", "The token <|endoftext|> closes a document.")
        )
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(vars(d)) + "\n" for d in documents))
    sources = {"web": SourceConfig(path=str(tmp_path / "in.jsonl"))}
    out = tmp_path / "out"
    job = Job(
        DataConfig(
            prepared=str(out), tokenizer="arcade100k", validation_percent=30, sources=sources
        ),
        PrepareConfig(duplicates="keep"),
    )
    [unit] = ingest_source(job, "web")
    done = tokenise_unit(job, unit)
    assert tokenise_unit(job, unit) == done, "read from its file"

    def expected(chosen: list[Document]) -> tuple[list[int], list[int]]:
        tokens, starts = list[int](), list[int]()
        for document in chosen:
            starts.append(len(tokens))
            tokens += [*arcade.encode(document.text), arcade.eos_token_id]
        return tokens, starts

    held = [document for document in documents if is_validation(document.id, 30)]
    trained = [document for document in documents if document not in held]
    assert len({document.language for document in held}) == 2
    assert (done.unique, done.documents, done.held_out) == (len(documents), len(trained), len(held))
    tokens, starts = expected(trained)
    assert np.load(out / "web-000000.tokens.npy").tolist() == tokens
    assert np.load(out / "web-000000.starts.npy").tolist() == starts
    for kind, chosen in (("counts", trained), ("held_out", held)):
        arrays = load_file(job.path(kind, unit))
        for language in ("de", "en"):
            tokens, starts = expected(
                [document for document in chosen if document.language == language]
            )
            if kind == "counts":
                assert (
                    arrays[language].tolist()
                    == np.bincount(tokens, minlength=arcade.vocab_size).tolist()
                )
            else:
                assert (arrays[language].tolist(), arrays[language + STARTS].tolist()) == (
                    tokens,
                    starts,
                )
