"""Tokenised text on disk: shards that are mapped into memory, and their manifest.

A shard is two NumPy files: `NAME.tokens.npy`, uint32, documents end to end with the
end-of-text token behind each, and `NAME.starts.npy`, int64, where each document begins.
The manifest names them with sizes and digests, the tokenizer, and how the sources were
read. `slm2 prepare` writes all this; training opens it.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import safetensors.numpy
from jaxtyping import Int
from numpy.lib.format import open_memmap
from pydantic import Field, TypeAdapter

from slm2_minimal.config import DataConfig, DataError
from slm2_minimal.config.paths import expand
from slm2_minimal.data.conversations import Conversations
from slm2_minimal.data.packing import PackedSequence, Stream, TokenStream
from slm2_minimal.data.reading import ReadingSettings
from slm2_minimal.files import digest, read_json, sha256, write_array
from slm2_minimal.text.tokenizer import Tokenizer

MANIFEST = "manifest.json"
COUNTS = "token_counts.safetensors"
FORMAT = 1
OPEN_SHARDS = 128  # at a time in one process: many systems allow it 1,024 files

Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]


@dataclass(frozen=True)
class Shard:
    """What the manifest says of one shard."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]  # of a file in its folder
    documents: Count
    tokens: Count
    sha256: dict[str, str]  # of each of its files

    @property
    def files(self) -> tuple[str, str]:
        """The names of its two files."""
        return f"{self.name}.tokens.npy", f"{self.name}.starts.npy"

    @property
    def digest(self) -> str:
        """Of both files."""
        return "".join(self.sha256.values())


@dataclass(frozen=True)
class TokenizerName:
    """The tokenizer that made the shards."""

    name: str
    fingerprint: str
    vocab_size: Count


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that `slm2 prepare` says of a folder; `token_counts` is a digest."""

    format: int = FORMAT
    tokenizer: TokenizerName
    read: ReadingSettings
    sources: dict[str, list[Shard]]
    held_out: dict[str, Shard]
    token_counts: str


def write_shard(folder: Path, name: str, stream: TokenStream) -> Shard:
    """Write a stream as the shard `name`; the digests are of the files on disk."""
    shard = Shard(name, len(stream.starts), stream.num_tokens, {})
    for file, array in zip(shard.files, (stream.tokens, stream.starts), strict=True):
        write_array(folder / file, array)
        shard.sha256[file] = sha256(folder / file)
    return shard


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _mapped(folder: str, files: tuple[str, str], eos: int, digest: str) -> TokenStream:
    """A shard as a stream; the digest tells it from a later one of the same name."""
    tokens, starts = (open_memmap(Path(folder, name), mode="r") for name in files)
    return TokenStream(tokens, starts, eos)


class ShardedStream(Stream):
    """A source on disk as one stream; shards are mapped when they are read.

    Sequences do not cross from one shard to the next: the last of every one is padded.
    """

    def __init__(self, folder: Path, shards: Iterable[Shard], eos: int) -> None:
        self.folder = str(folder)
        self.shards = [shard for shard in shards if shard.tokens]
        self.eos = eos
        self._ends_by_length: dict[int, Int[np.ndarray, " shards"]] = {}

    @property
    def num_tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards)

    def num_sequences(self, seq_len: int) -> int:
        return int(self._ends(seq_len)[-1]) if self.shards else 0

    def sequence(self, index: int, seq_len: int) -> PackedSequence:
        if not 0 <= index < self.num_sequences(seq_len):
            raise IndexError(f"sequence {index} of {self.num_sequences(seq_len)}")
        ends = self._ends(seq_len)
        number = int(np.searchsorted(ends, index, side="right"))
        before = int(ends[number - 1]) if number else 0
        shard = self.shards[number]
        stream = _mapped(self.folder, shard.files, self.eos, shard.digest)
        return stream.sequence(index - before, seq_len)

    def digest(self) -> str:
        return digest([asdict(shard) for shard in self.shards])

    def _ends(self, seq_len: int) -> Int[np.ndarray, " shards"]:
        """How many sequences the shards up to and including each one give."""
        if seq_len not in self._ends_by_length:
            counts = [-(-shard.tokens // seq_len) for shard in self.shards]
            self._ends_by_length[seq_len] = np.cumsum(counts, dtype=np.int64)
        return self._ends_by_length[seq_len]


@dataclass(frozen=True)
class TokenisedSources:
    """The text of a `[data]` table as tokens, in memory or on disk: by source, what is
    trained on; by language, what is held out, and how often each id stands in the rest.
    """

    streams: Mapping[str, Stream]
    held_out: dict[str, TokenStream]
    token_counts: dict[str, Int[np.ndarray, " V"]]


def open_prepared(config: DataConfig, tokenizer: Tokenizer) -> TokenisedSources:
    """Check and open what `slm2 prepare` wrote into `config.prepared`.

    Raises:
        DataError: nothing there, a file missing, cut short or altered, another
        tokenizer, or other sources.
    """
    folder = Path(expand(config.prepared or "", "data.prepared"))
    Conversations.of(config, tokenizer)  # refuses a format without ids
    manifest = read_manifest(folder)
    _check_same_text(config, tokenizer, folder, manifest)

    # hold all files against it
    sources = {name: manifest.sources[name] for name in config.sources}
    shards = [*itertools.chain(*sources.values()), *manifest.held_out.values()]
    verify(folder, shards, every_byte=config.verify == "bytes")

    eos = tokenizer.eos_token_id
    streams = {name: ShardedStream(folder, shards, eos) for name, shards in sources.items()}
    held_out = {
        language: _mapped(str(folder), shard.files, eos, shard.digest)
        for language, shard in manifest.held_out.items()
    }
    counts = _read_counts(folder, manifest.token_counts, tokenizer.vocab_size)
    return TokenisedSources(streams, held_out, counts)


def _check_same_text(
    config: DataConfig, tokenizer: Tokenizer, folder: Path, manifest: Manifest
) -> None:
    """Refuse what another tokenizer made, or sources that were read otherwise."""
    theirs = manifest.tokenizer
    if theirs.fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"data.tokenizer = {config.tokenizer!r}: {folder} was tokenised with another one,"
            f" {theirs.name!r} ({theirs.fingerprint}, not {tokenizer.fingerprint}); name that"
            " one, or prepare another folder"
        )

    prepared = manifest.read
    settings = ReadingSettings.of(config)
    for name, source in settings.sources.items():
        if name not in prepared.sources or name not in manifest.sources:
            known = ", ".join(prepared.sources)
            remedy = "prepare another folder with it"
            raise DataError(f"data.sources.{name}: {folder} has only {known}; {remedy}")
        if source != prepared.sources[name]:
            raise DataError(
                f"data.sources.{name} = {source}: {folder} was prepared from"
                f" {prepared.sources[name]}; prepare another folder"
            )
    if settings.validation_percent != prepared.validation_percent:
        raise DataError(
            f"data.validation_percent = {settings.validation_percent}: {folder} was prepared with"
            f" {prepared.validation_percent}; use that, or prepare another folder"
        )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder. Raises DataError where it cannot be read."""
    where = f"data.prepared = {str(folder)!r}"
    try:
        content = read_json(folder / MANIFEST)
        number = content["format"]
        if number == FORMAT:
            return TypeAdapter(Manifest).validate_python(content)
    except OSError as error:
        remedy = "run slm2 prepare with this configuration"
        raise DataError(f"{where}: {MANIFEST}: {error.strerror}; {remedy}") from None
    except (ValueError, KeyError, TypeError):
        raise _damaged(folder, f"{MANIFEST} is damaged") from None
    formats = f"has format {number!r}, this version reads {FORMAT}"
    raise DataError(f"{where}: {formats}; prepare another folder")


def verify(folder: Path, shards: Iterable[Shard], *, every_byte: bool) -> None:
    """Hold the files against the manifest, on all cores: type, length, and digests with
    `every_byte`. Raises DataError for the first that is not as it was written.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for complaint in pool.map(lambda shard: _complaint(folder, shard, every_byte), shards):
            if complaint:
                raise _damaged(folder, complaint)


def _complaint(folder: Path, shard: Shard, every_byte: bool) -> str | None:
    """What is wrong with the first file of a shard that is not as it was written."""
    expected = ((shard.tokens, np.dtype(np.uint32)), (shard.documents, np.dtype(np.int64)))
    for name, (length, dtype) in zip(shard.files, expected, strict=True):
        try:
            array = open_memmap(folder / name, mode="r")
        except Exception as error:  # NumPy raises many kinds for a damaged head
            reason = str(error).partition("\n")[0]
            return f"{name} is missing or cut short ({reason})"
        if array.shape != (length,) or array.dtype != dtype:
            return f"{name} holds {array.shape} of {array.dtype}, not {(length,)} of {dtype}"
        if every_byte and sha256(folder / name) != shard.sha256.get(name):
            return f"{name} was altered: its SHA-256 is not the manifest's"
    return None


def _read_counts(folder: Path, digest: str, vocab_size: int) -> dict[str, Int[np.ndarray, " V"]]:
    try:
        if sha256(folder / COUNTS) != digest:
            raise ValueError("its SHA-256 is not the manifest's")
        counts = safetensors.numpy.load_file(folder / COUNTS)
        if any(each.shape != (vocab_size,) or each.dtype != np.int64 for each in counts.values()):
            raise ValueError(f"not {vocab_size} whole numbers for each language")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(folder, f"{COUNTS} is missing or altered ({error})") from None
    return counts


def _damaged(folder: Path, complaint: str) -> DataError:
    remedy = "copy that file again, or prepare another folder"
    return DataError(f"data.prepared = {str(folder)!r}: {complaint}; {remedy}")
