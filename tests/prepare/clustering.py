"""Planted duplicates and leaks for the preparation on datatrove's executors, and how
two prepared folders are compared.
"""

import json
import random
import re
from pathlib import Path

import numpy as np

from slm2_minimal.config import RunConfig
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.data.shards import COUNTS, open_prepared, read_manifest
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.tokenizer import SentencePieceTokenizer

TEXTS = [document.text for document in load_corpus(languages=["en"])[:30]]
WORDS = sorted({word for text in TEXTS for word in text.split() if word.isalpha()})


def chain() -> list[str]:
    """Three texts of 200 words: the second shares 170 with each of the others, which
    share 140.
    """
    words = random.Random(7).choices(WORDS, k=260)
    return [" ".join(words[begin : begin + 200]) for begin in (0, 30, 60)]


def spread_out(text: str) -> str:
    """The same words with other white space: an exact copy."""
    return f"  {text.replace(' ', '  ')}\n"


A, B, C = chain()
NO_WORDS = "*** --- *** --- *** ---"
QUIZ = " ".join(TEXTS[20].split()[5:30])
LEAKED = f"{TEXTS[21]} {QUIZ} {TEXTS[22]}"
WEB = [  # the files of a folder; beside each text whether it stays
    ("a.jsonl.gz", [(TEXTS[0], True), (C, True), (TEXTS[1], True), (NO_WORDS, True)]),
    (
        "b.jsonl",
        [
            ("", False),
            ("too short", False),
            (TEXTS[2], True),
            (spread_out(TEXTS[0]), False),
            (A, False),
        ],
    ),
    ("c.jsonl", []),
    (
        "d/e.jsonl",
        [
            (LEAKED, False),
            (TEXTS[3], True),
            (TEXTS[2], False),
            (TEXTS[4], True),
            ("? ! ? ! ? ! ? ! ? ! ? !", True),
        ],
    ),
    ("f.txt", [(TEXTS[5], True)]),
    ("g.jsonl", [(text, True) for text in TEXTS[6:9]]),
]
BOOKS = [(B, False), (TEXTS[9], True), (TEXTS[1], False), (NO_WORDS, False), (TEXTS[10], True)]
CHANGES = {"prepare.similarity": 0.6, "prepare.shard_megabytes": 1}


def as_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def stream(folder: str | Path, source: str, eos: int) -> TokenStream:
    """A source's shards as one."""
    parts = [shard.name for shard in read_manifest(Path(folder)).sources[source]]
    arrays = [
        [np.load(Path(folder) / f"{name}.{kind}.npy") for kind in ("tokens", "starts")]
        for name in parts
    ]
    return TokenStream.joined([TokenStream(tokens, starts, eos) for tokens, starts in arrays])


def texts(folder: str | Path, source: str, tokenizer: SentencePieceTokenizer) -> list[str]:
    found = stream(folder, source, tokenizer.eos_token_id)
    return [
        tokenizer.decode(part[:-1].tolist()) for part in np.split(found.tokens, found.starts[1:])
    ]


def assert_same(run: RunConfig, other: RunConfig, tokenizer: SentencePieceTokenizer) -> None:
    """Both folders hold the same documents in the same order, held out and trained on,
    and the same report.
    """
    one, two = (Path(r.data.prepared or "") for r in (run, other))
    names = [COUNTS, "report.json", *(path.name for path in two.glob("held_out.*.npy"))]
    assert len(names) > 2 or not run.data.validation_percent
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    for source in run.data.sources:
        assert (
            stream(one, source, tokenizer.eos_token_id).digest()
            == stream(two, source, tokenizer.eos_token_id).digest()
        ), source
    ours, theirs = (open_prepared(r.data, tokenizer) for r in (run, other))
    assert list(ours.streams) == list(theirs.streams)
    assert ours.held_out.keys() == theirs.held_out.keys()
    assert not (one / "work").exists()


def directives(stage: str) -> dict[str, str]:
    script = Path(f"out/logs/{stage}/launch_script.slurm").read_text()
    assert script.startswith("#!/bin/bash\n")
    return {
        key: value for key, value in re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE)
    }
