"""Tokenised text on disk: shards that are mapped into memory, and the manifest that
says what they are.

A shard is two NumPy files: `NAME.tokens.npy`, uint32, documents end to end with the
end-of-text token behind each, and `NAME.starts.npy`, int64, where each document begins.
The manifest names them with their sizes and digests, the tokenizer, and how the sources
were read, so that nothing is trained on by mistake. `slm2 prepare` writes all this;
training opens it.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from jaxtyping import Int

from slm2_minimal.config import DataConfig, DataError
from slm2_minimal.data.packing import PackedSequence, TokenStream
from slm2_minimal.data.reading import how_sources_are_read
from slm2_minimal.files import sha256, write_array
from slm2_minimal.text.tokenizer import Tokenizer

MANIFEST, COUNTS, FORMAT = "manifest.json", "token_counts.safetensors", 1
OPEN_SHARDS = (
    128  # held open by one process at a time: two files each, of the 1,024 that many systems allow
)


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard."""

    name: str
    documents: int
    tokens: int
    sha256: dict[str, str]  # of each of its files

    @property
    def files(self) -> tuple[str, str]:
        """The names of its two files."""
        return f"{self.name}.tokens.npy", f"{self.name}.starts.npy"

    @property
    def digest(self) -> str:
        """Of both files."""
        return "".join(self.sha256.values())


def write_shard(folder: Path, name: str, stream: TokenStream) -> Shard:
    """Write a stream as the shard `name`; the digests are of the files as they stand on
    disk.
    """
    shard = Shard(name, len(stream.starts), len(stream.tokens), {})
    for file, array in zip(shard.files, (stream.tokens, stream.starts), strict=True):
        write_array(folder / file, array)
        shard.sha256[file] = sha256(folder / file)
    return shard


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _mapped(folder: str, files: tuple[str, str], eos: int, digest: str) -> TokenStream:
    """A shard's files as one stream; the digest tells it from another one that has been
    written under the same name since.
    """
    tokens, starts = (
        np.load(Path(folder) / name, mmap_mode="r", allow_pickle=False) for name in files
    )
    return TokenStream(tokens, starts, eos)


class ShardedStream:
    """A source on disk as one stream of sequences. It holds names and sizes; the shards
    are mapped when they are read.

    Sequences do not cross from one shard to the next, so the last one of every shard is
    padded.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], eos: int) -> None:
        self.folder, self.shards, self.eos = (
            str(folder),
            [shard for shard in shards if shard.tokens],
            eos,
        )
        self._ends_by_length: dict[int, Int[np.ndarray, " shards"]] = {}

    def _ends(self, seq_len: int) -> Int[np.ndarray, " shards"]:
        """How many sequences the shards up to and including each one give."""
        if seq_len not in self._ends_by_length:
            counts = [-(-shard.tokens // seq_len) for shard in self.shards]
            self._ends_by_length[seq_len] = np.cumsum(counts, dtype=np.int64)
        return self._ends_by_length[seq_len]

    def num_sequences(self, seq_len: int) -> int:
        """How many sequences of `seq_len` the source gives."""
        return int(self._ends(seq_len)[-1]) if self.shards else 0

    def sequence(self, index: int, seq_len: int) -> PackedSequence:
        """The sequence at `index`, as `TokenStream.sequence` cuts it from its shard."""
        ends = self._ends(seq_len)
        if not 0 <= index < self.num_sequences(seq_len):
            raise IndexError(f"sequence {index} of {self.num_sequences(seq_len)}")
        number = int(np.searchsorted(ends, index, side="right"))
        before = int(ends[number - 1]) if number else 0
        shard = self.shards[number]
        return _mapped(self.folder, shard.files, self.eos, shard.digest).sequence(
            index - before, seq_len
        )

    def digest(self) -> str:
        """A digest of the shards' digests."""
        return hashlib.sha256(
            json.dumps([asdict(shard) for shard in self.shards], sort_keys=True).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Prepared:
    """What a prepared folder gives to training."""

    streams: dict[str, ShardedStream]
    tokens: dict[str, int]
    held_out: dict[str, TokenStream]
    token_counts: dict[str, Int[np.ndarray, " V"]]


def open_prepared(config: DataConfig, tokenizer: Tokenizer) -> Prepared:
    """Check and open what `slm2 prepare` wrote into `config.prepared`.

    Raises:
        DataError: nothing there, a file missing, cut short or altered, another
        tokenizer, or other sources.
    """
    folder = Path(config.prepared or "").expanduser()
    manifest = read_manifest(folder)
    if manifest["tokenizer"]["fingerprint"] != tokenizer.fingerprint:
        raise DataError(
            f"data.tokenizer = {config.tokenizer!r}: {folder} was tokenised with another one,"
            f" {manifest['tokenizer']['name']!r} ({manifest['tokenizer']['fingerprint']}, not"
            f" {tokenizer.fingerprint}); name that one, or prepare another folder"
        )
    ours, theirs = how_sources_are_read(config), manifest["read"]
    for name, source in ours["sources"].items():
        if name not in theirs["sources"]:
            raise DataError(
                f"data.sources.{name}: {folder} has only {', '.join(theirs['sources'])}; prepare"
                " another folder with it"
            )
        if source != theirs["sources"][name]:
            raise DataError(
                f"data.sources.{name} = {source}: {folder} was prepared from"
                f" {theirs['sources'][name]}; prepare another folder"
            )
    if ours["validation_percent"] != theirs["validation_percent"]:
        raise DataError(
            f"data.validation_percent = {ours['validation_percent']}: {folder} was prepared with"
            f" {theirs['validation_percent']}; use that, or prepare another folder"
        )
    sources = {
        name: [Shard(**shard) for shard in manifest["sources"][name]] for name in ours["sources"]
    }
    held_out = {language: Shard(**shard) for language, shard in manifest["held_out"].items()}
    verify(
        folder,
        [*(shard for shards in sources.values() for shard in shards), *held_out.values()],
        every_byte=config.verify == "bytes",
    )
    eos = tokenizer.eos_token_id
    return Prepared(
        {name: ShardedStream(folder, shards, eos) for name, shards in sources.items()},
        {name: sum(shard.tokens for shard in shards) for name, shards in sources.items()},
        {
            language: _mapped(str(folder), shard.files, eos, shard.digest)
            for language, shard in held_out.items()
        },
        _read_counts(folder, manifest),
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder. Raises DataError where there is none that can
    be read.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        number = manifest["format"]
    except OSError as error:
        raise DataError(
            f"data.prepared = {str(folder)!r}: {MANIFEST}: {error.strerror}; run slm2 prepare with"
            " this configuration"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"data.prepared = {str(folder)!r}: {MANIFEST} is damaged; copy it again, or prepare"
            " another folder"
        ) from None
    if number != FORMAT:
        raise DataError(
            f"data.prepared = {str(folder)!r}: has format {number!r}, this version reads {FORMAT};"
            " prepare another folder"
        )
    return manifest


def verify(folder: Path, shards: Iterable[Shard], *, every_byte: bool) -> None:
    """Hold the files against the manifest: presence, type and length, and with
    `every_byte` their digests, on all cores.

    Raises:
        DataError: names the first file that is not as it was written.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for complaint in pool.map(lambda shard: _complaint(folder, shard, every_byte), shards):
            if complaint:
                raise DataError(
                    f"data.prepared = {str(folder)!r}: {complaint}; copy that file again, or"
                    " prepare another folder"
                )


def _complaint(folder: Path, shard: Shard, every_byte: bool) -> str:
    for name, length, kind in zip(
        shard.files, (shard.tokens, shard.documents), (np.uint32, np.int64), strict=True
    ):
        try:
            array = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        except (OSError, EOFError, ValueError) as error:
            return f"{name} is missing or cut short ({str(error).splitlines()[0]})"
        if array.shape != (length,) or array.dtype != kind:
            return (
                f"{name} holds {array.shape} of {array.dtype}, not {(length,)} of {np.dtype(kind)}"
            )
        if every_byte and sha256(folder / name) != shard.sha256[name]:
            return f"{name} was altered: its SHA-256 is not the manifest's"
    return ""


def _read_counts(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Int[np.ndarray, " V"]]:
    try:
        if sha256(folder / COUNTS) != manifest["token_counts"]:
            raise ValueError("its SHA-256 is not the manifest's")
        return safetensors.numpy.load_file(folder / COUNTS)
    except (OSError, ValueError) as error:
        raise DataError(
            f"data.prepared = {str(folder)!r}: {COUNTS} is missing or altered ({error}); copy that"
            " file again, or prepare another folder"
        ) from None
