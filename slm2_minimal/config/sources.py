"""The tables that say what is read: [data] with its sources and stages, and [prepare]
for what happens to raw text before.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict

from slm2_minimal.config.errors import ConfigError
from slm2_minimal.config.paths import expand
from slm2_minimal.config.section import (
    Count,
    PathText,
    PositiveFloat,
    PositiveInt,
    Section,
    Strings,
    Table,
    nearest_multiple,
    section,
)


@section("source")
class SourceConfig(Section):
    """One source of text: the embedded corpus, or a file, a folder, a Hub id."""

    weight: Annotated[int | float, Field(gt=0, le=1_000_000)] = 1
    """An integer is a part of the sum of all; a decimal a share, and all sum to 1."""
    path: PathText | None = None
    """A file, a folder, or a Hub id; not set: the embedded corpus, or instructions."""
    format: Literal["text", "chat"] = "text"
    """chat: records are conversations, of which only the answers are learned."""
    text_field: str = "text"
    """The field of a record that holds its text."""
    languages: Strings | None = None
    """Read these languages only."""
    domains: Strings | None = None
    """Read these domains only."""

    subset: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The share of the source's sequences that is read at all: an epoch count below 1
    in the report's Table 1."""
    max_epochs: PositiveFloat = 4.0
    """How often those may be read; about 4 passes teach nearly as much as fresh text
    (Muennighoff et al. 2023)."""


@section("stage")
class StageConfig(Section):
    """Other weights from some point of the data on."""

    start_tokens: PositiveInt
    """Tokens from the beginning of the run; a multiple of seq_len."""
    weights: dict[str, int | float]
    """A weight for each source; one that is left out is not read."""


Source = Annotated[SourceConfig, BeforeValidator(SourceConfig.from_table)]
Stage = Annotated[StageConfig, BeforeValidator(StageConfig.from_table)]


@section("data")
class DataConfig(Table):
    """What is read and how it is cut (report sections 2 and 3)."""

    tokenizer: PathText = "arcade100k"
    """arcade100k, tiny, or the path of a tokenizer's file."""
    seq_len: PositiveInt = 4096
    """Tokens in one sequence; at most model.max_position_embeddings."""

    sources: dict[str, Source] = Field(default_factory=dict)
    """What is blended, by name: one sequence at a time, according to the weights."""
    stages: Annotated[tuple[Stage, ...], Strict(False)] = ()
    """Changes of the weights later in the run, as [[data.stages]]."""
    temperature: Annotated[float, Field(ge=0.1, le=1e6)] | None = None
    """In the weights' place: shares go with tokens ** (1 / temperature)."""
    chat: Literal["zephyr", "chatml", "plain"] = "zephyr"
    """How the conversations of sources with format = "chat" are written."""

    validation_percent: Annotated[int, Field(ge=0, lt=100)] = 10
    """About this share of the documents is held out, with all their translations."""

    prepared: PathText | None = None
    """The folder that slm2 prepare writes and slm2 train reads; not set: texts are
    tokenised at the start of the run and held in memory."""
    verify: Literal["bytes", "sizes"] = "bytes"
    """What is checked when that folder is opened: every byte, or the files' sizes."""

    workers: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Processes that read batches ahead of the training."""
    seed: Count = 1234
    """Decides the order of the sequences."""

    def __post_init__(self) -> None:
        # stages begin at different places, between two sequences
        starts: list[int] = []
        for number, stage in enumerate(self.stages):
            start = stage.start_tokens
            if start in starts:
                raise ConfigError(
                    f"data.stages[{number}].start_tokens = {start}: another stage begins there"
                    " already; leave out the one or the other"
                )
            starts.append(start)
            if start % self.seq_len:
                raise ConfigError(
                    f"data.stages[{number}].start_tokens = {start}: must be a multiple of seq_len ="
                    f" {self.seq_len}; the nearest is {nearest_multiple(start, self.seq_len)}"
                )

        # what excludes each other
        if self.temperature is not None and self.stages:
            raise ConfigError(
                f"data.temperature = {self.temperature}: gives every source its share already;"
                " leave out data.stages"
            )
        formats = {source.format for source in self.sources.values()}
        if len(formats) > 1:
            name = next(name for name, source in self.sources.items() if source.format == "chat")
            raise ConfigError(
                f"data.sources.{name}.format = 'chat': other sources are text; read the one or the"
                " other in a run"
            )

    @property
    def is_chat(self) -> bool:
        """Whether the sources are conversations."""
        return any(source.format == "chat" for source in self.sources.values())


@section("benchmark")
class BenchmarkConfig(Section):
    """An evaluation set to keep out of the training."""

    path: PathText
    """A file, a folder, or a Hub id."""
    text_field: str = "text"
    """The field of a record that holds its text."""


def _path_or_table(value: Any) -> Any:
    return expand(value, "path") if isinstance(value, str) else BenchmarkConfig.from_table(value)


Benchmark = Annotated[str | BenchmarkConfig, BeforeValidator(_path_or_table)]


@section("prepare")
class PrepareConfig(Table):
    """What `slm2 prepare` does between raw text and shards. The report names its
    sources only; these steps are the field's.
    """

    min_characters: PositiveInt = 20
    """Shorter documents are left out."""
    max_characters: PositiveInt = 10_000_000
    """Longer documents are left out."""

    duplicates: Literal["near", "exact", "keep"] = "near"
    """Which repetitions are left out: near ones too, exact ones only, or none."""
    similarity: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """The Jaccard similarity of shingles above which MinHash finds most pairs."""
    permutations: Annotated[int, Field(gt=0, le=1_024)] = 128
    """At most so many hash functions in a document's signature."""
    shingle_words: Annotated[int, Field(gt=0, le=1_000)] = 5
    """Words in one shingle."""
    keep: Literal["first", "longest"] = "first"
    """Which document of a cluster of duplicates stays."""

    benchmarks: dict[str, Benchmark] = Field(default_factory=dict)
    """Evaluation sets to keep out of the training, by name: each a file, a folder or a
    Hub id, or {path = "...", text_field = "..."}."""
    ngram_words: Annotated[int, Field(gt=0, le=1_000)] = 13
    """A document is contaminated where it shares so many words in a row with one."""
    contaminated: Literal["drop", "cut"] = "drop"
    """What happens to it: it is left out, or the shared place is cut out."""

    shard_megabytes: Annotated[int, Field(gt=0, le=100_000)] = 64
    """Megabytes of text in one shard, about."""
    workers: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Processes that share the work; 0: one for each core."""
