"""The sections of a run's configuration: one frozen class for each table of its TOML
file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict

from slm2_minimal.config.errors import ConfigError
from slm2_minimal.config.files import preset_path, read_toml
from slm2_minimal.config.section import section

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Strings = Annotated[tuple[str, ...], Strict(False)]  # TOML has lists, a frozen config wants tuples


class _Preset:
    """What every section and the whole run share: reading themselves from a preset, and
    changed copies.
    """

    _table: str

    @classmethod
    def preset(cls, name: str) -> Self:
        """This section as the preset `name` (the stem of a file in `presets/`) has
        it.
        """
        return cls.from_table(read_toml(preset_path(name)).get(cls._table, {}))

    @classmethod
    def from_table(cls, table: Any) -> Self:
        """This section from a table of a TOML file. Raises ConfigError for what cannot
        be.
        """
        return cls(**_fields(cls._table, table))

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@section
class ModelConfig(_Preset):
    """The architecture, with the field names of Hugging Face's `StableLmConfig` (report
    section 2.3).

    The defaults are Stable LM 2 1.6B. `norm_bias` and `final_norm_bias` are ours: the
    report's model has both; the model card's parameter count equals the one without the
    biases of the 48 norms inside the blocks.
    """

    _table = "model"

    vocab_size: PositiveInt = 100_352
    hidden_size: PositiveInt = 2048
    intermediate_size: PositiveInt = 5632
    num_hidden_layers: PositiveInt = 24
    num_attention_heads: PositiveInt = 32
    num_key_value_heads: PositiveInt = 32
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: PositiveInt = 4096
    layer_norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 10_000.0
    partial_rotary_factor: Annotated[float, Field(ge=0, le=1)] = 0.25
    use_qkv_bias: bool = True
    norm_bias: bool = True
    final_norm_bias: bool = True
    tie_word_embeddings: bool = False
    initializer_range: PositiveFloat = 0.02
    bos_token_id: Annotated[int, Field(ge=0)] = 100_257
    eos_token_id: Annotated[int, Field(ge=0)] = 100_257

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads:
            raise ConfigError(
                f"model.hidden_size = {self.hidden_size}: must be a multiple of num_attention_heads"
                f" = {heads}; the nearest is {max(1, round(self.hidden_size / heads)) * heads}"
            )
        if heads % kv_heads:
            raise ConfigError(
                f"model.num_key_value_heads = {kv_heads}: must divide num_attention_heads ="
                f" {heads}; use {heads} for plain multi-head attention"
            )
        if self.rotary_dim % 2:
            raise ConfigError(
                f"model.partial_rotary_factor = {self.partial_rotary_factor}: gives"
                f" {self.rotary_dim} rotary dimensions of {self.head_dim}; they turn in pairs, so"
                " choose a factor that makes the number even"
            )
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) >= self.vocab_size:
                raise ConfigError(
                    f"model.{name} = {getattr(self, name)}: must lie below vocab_size ="
                    f" {self.vocab_size}; take the id from the tokenizer"
                )

    @property
    def head_dim(self) -> int:
        """D, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def rotary_dim(self) -> int:
        """How many of the D dimensions of a head rotary embedding turns."""
        return int(self.head_dim * self.partial_rotary_factor)

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """The number of weights, by arithmetic alone; without `embeddings`, the input
        table is left out (as in FLOP counts).
        """
        channels, head_dim = self.hidden_size, self.head_dim
        queries, keys = self.num_attention_heads * head_dim, self.num_key_value_heads * head_dim
        attention = channels * (2 * queries + 2 * keys) + self.use_qkv_bias * (queries + 2 * keys)
        mlp = 3 * channels * self.intermediate_size
        block_norms = 2 * channels * (1 + self.norm_bias)
        final_norm = channels * (1 + self.final_norm_bias)
        table = self.vocab_size * channels
        head = 0 if self.tie_word_embeddings and embeddings else table
        return (
            table * embeddings
            + head
            + self.num_hidden_layers * (attention + mlp + block_norms)
            + final_norm
        )


@section
class ScheduleConfig(_Preset):
    """The learning rate as a function of the step (report section 3.2); the formulas
    are in `train.schedule`.

    hybrid: warm-up, a quarter of a cosine with period `decay_steps`, then alpha /
    sqrt(step + beta). cosine: half a cosine down to `min_rate` at `decay_steps`.
    inverse_sqrt: peak_rate * sqrt(warmup_steps / step). wsd and constant: `peak_rate`
    throughout; wsd says that a cooldown is meant to follow. Any of them goes to 0 over
    `cooldown_steps` from `cooldown_start` on, where that is given.
    """

    _table = "schedule"

    kind: Literal["hybrid", "cosine", "inverse_sqrt", "wsd", "constant"] = "hybrid"
    peak_rate: PositiveFloat = 1e-3
    min_rate: Annotated[float, Field(ge=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 9_720
    decay_steps: PositiveInt = 540_000
    cooldown_start: Annotated[int, Field(ge=0)] | None = None
    cooldown_steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.min_rate >= self.peak_rate:
            raise ConfigError(
                f"schedule.min_rate = {self.min_rate}: must lie below peak_rate = {self.peak_rate};"
                " the report has a tenth of it"
            )
        if (self.cooldown_start is None) != (self.cooldown_steps is None):
            raise ConfigError(
                f"schedule.cooldown_start = {self.cooldown_start}, cooldown_steps ="
                f" {self.cooldown_steps}: give both or neither"
            )
        if self.kind == "wsd" and self.cooldown_start is None:
            raise ConfigError(
                "schedule.kind = 'wsd': needs cooldown_start and cooldown_steps; without them it is"
                " 'constant'"
            )
        if self.kind == "inverse_sqrt" and self.warmup_steps == 0:
            raise ConfigError(
                "schedule.warmup_steps = 0: 'inverse_sqrt' decays from the end of warm-up; give at"
                " least 1"
            )


@section
class OptimizerConfig(_Preset):
    """AdamW and clipping (report section 3.2). Decay falls on matrices only."""

    _table = "optimizer"

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    clip_norm: PositiveFloat = 1.0


@section
class SourceConfig:
    """One source of text: the embedded corpus, or a file, folder or Hub id, narrowed by
    language and domain. Its records have their text in `text_field`.

    `weight` is an integer, a part of the sum of all, or a share, and then all shares
    sum to 1. `subset` is the share of the source's sequences that is read at all (an
    epoch count below 1 in the report's Table 1), `max_epochs` how often those may be
    read: about 4 passes teach nearly as much as fresh text (Muennighoff et al. 2023).
    """

    _table = "source"

    weight: Annotated[int | float, Field(gt=0, lt=float("inf"))] = 1
    path: str | None = None
    text_field: str = "text"
    languages: Strings | None = None
    domains: Strings | None = None
    subset: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_epochs: PositiveFloat = 4.0


@section
class StageConfig:
    """Other weights from some point of the data on: after `start_tokens` tokens,
    counted from the beginning of the run.
    """

    _table = "stage"

    start_tokens: PositiveInt
    weights: dict[str, int | float]


@section
class DataConfig(_Preset):
    """What is read and how it is cut (report sections 2.1 and 3.1).

    `sources` are blended by weight, one sequence of `seq_len` tokens at a time;
    `stages` change the weights later on. With a `temperature`, weights are ignored and
    a source's share is proportional to its tokens ** (1 / temperature). About
    `validation_percent` of the document ids are held out, with every translation of
    them. `prepared` is the folder that `slm2 prepare` writes and `slm2 train` reads;
    without it the texts are tokenised at the start of the run and held in memory. When
    it is opened, `verify` checks every byte, or only the sizes of its files. `workers`
    processes read batches ahead of the training.
    """

    _table = "data"

    tokenizer: str = "arcade100k"
    seq_len: PositiveInt = 4096
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    stages: Annotated[tuple[StageConfig, ...], Strict(False)] = ()
    temperature: PositiveFloat | None = None
    validation_percent: Annotated[int, Field(ge=0, lt=100)] = 10
    prepared: str | None = None
    verify: Literal["bytes", "sizes"] = "bytes"
    workers: Annotated[int, Field(ge=0)] = 0
    seed: Annotated[int, Field(ge=0)] = 1234

    def __post_init__(self) -> None:
        for number, stage in enumerate(self.stages):
            if stage.start_tokens % self.seq_len:
                raise ConfigError(
                    f"data.stages[{number}].start_tokens = {stage.start_tokens}: must be a multiple"
                    f" of seq_len = {self.seq_len}; the nearest is"
                    f" {max(1, round(stage.start_tokens / self.seq_len)) * self.seq_len}"
                )
        if self.temperature is not None and self.stages:
            raise ConfigError(
                f"data.temperature = {self.temperature}: gives every source its share already;"
                " leave out data.stages"
            )


@section
class PrepareConfig(_Preset):
    """What `slm2 prepare` does between raw text and shards (the report's section 2.1
    names the sources; these steps are the field's).

    Documents outside `min_characters` .. `max_characters` are left out, then
    duplicates, exact ones or near ones too. `similarity` is the Jaccard similarity of
    `shingle_words`-word shingles around which MinHash's chance to find a pair climbs
    from small to nearly 1, as `data.minhash.LSH.probability` says. `benchmarks` names
    evaluation sets, each a file, folder or Hub id: a document that shares `ngram_words`
    words in a row with one is dropped, or the shared place is cut out. A shard is made
    of about `shard_megabytes` of text. `workers` processes share the work; 0 means one
    per core.
    """

    _table = "prepare"

    min_characters: PositiveInt = 20
    max_characters: PositiveInt = 10_000_000
    duplicates: Literal["near", "exact", "keep"] = "near"
    similarity: Annotated[float, Field(gt=0, lt=1)] = 0.8
    permutations: PositiveInt = 128
    shingle_words: PositiveInt = 5
    keep: Literal["first", "longest"] = "first"
    benchmarks: dict[str, str] = Field(default_factory=dict)
    ngram_words: PositiveInt = 13
    contaminated: Literal["drop", "cut"] = "drop"
    shard_megabytes: PositiveInt = 64
    workers: Annotated[int, Field(ge=0)] = 0


IGNORE = -100  # the label of a position that is not to be learned, as in torch

SHARDED = ("zero1", "fsdp", "hybrid")
STRATEGIES = ("single", "ddp", *SHARDED)
CHECKPOINTING = ("none", "selective", "full")


@section
class ParallelConfig(_Preset):
    """How a run is spread over its processes (report section 3: ZeRO stage 1, no model
    parallelism); `train.parallel` says what each is.

    `auto` is single in one process and zero1, the report's, in several. `hybrid` shards
    among `shard_ranks` ranks (left out: those of a node) and repeats that.
    `tensor_parallel` ranks share every matrix of the blocks. `checkpointing` is that of
    activations: what is not kept is computed again. `compile` compiles each block.
    """

    _table = "parallel"

    strategy: Literal["auto", "single", "ddp", "zero1", "fsdp", "hybrid"] = "auto"
    shard_ranks: PositiveInt | None = None
    tensor_parallel: PositiveInt = 1
    checkpointing: Literal["none", "selective", "full"] = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.tensor_parallel > 1 and self.strategy not in ("zero1", "fsdp"):
            raise ConfigError(
                f"parallel.tensor_parallel = {self.tensor_parallel}: goes with strategy zero1 or"
                f" fsdp, not {self.strategy!r}"
            )
        if self.shard_ranks is not None and self.strategy != "hybrid":
            raise ConfigError(
                f"parallel.shard_ranks = {self.shard_ranks}: is for strategy 'hybrid', not"
                f" {self.strategy!r}; leave it out"
            )


@section
class TrainConfig(_Preset):
    """How the loop runs. The global batch is given in tokens; accumulation is derived
    from it.

    A batch is passed over where loss or gradient norm is not finite or the loss lies
    `spike_sigmas` standard deviations above its recent mean (0: however high);
    `train.guard` says what follows. From `profile_step` on, a few steps are traced.
    `wandb` names a project.
    """

    _table = "train"

    steps: PositiveInt = 500_000
    global_batch_tokens: PositiveInt = 8_388_608
    micro_batch_size: PositiveInt = 2
    seed: Annotated[int, Field(ge=0)] = 1234
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    output_dir: str = "runs/run"
    start_from: str | None = None
    log_every: PositiveInt = 10
    validate_every: PositiveInt = 2_000
    save_every: PositiveInt = 2_000
    keep_checkpoints: PositiveInt = 2
    spike_sigmas: Annotated[float, Field(ge=0)] = 6.0
    profile_step: Annotated[int, Field(ge=0)] | None = None
    wandb: str | None = None
    prompts: Strings = ()
    sample_tokens: PositiveInt = 64


def _fields(name: str, table: Any) -> dict[str, Any]:
    """The fields of one table, the sources inside it made into configs."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{name} = {table!r}: must be a table of fields")
    fields = dict(table)
    if name == "data" and isinstance(fields.get("sources"), Mapping):
        fields["sources"] = {
            key: _inner(SourceConfig, f"data.sources.{key}", value)
            for key, value in fields["sources"].items()
        }
    if name == "data" and isinstance(fields.get("stages"), list | tuple):
        fields["stages"] = tuple(
            _inner(StageConfig, f"data.stages[{i}]", value)
            for i, value in enumerate(fields["stages"])
        )
    return fields


def _inner(cls: Any, where: str, table: Any) -> Any:
    """A section that stands inside another, its errors under its full name."""
    try:
        return cls(**_fields(where, table))
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{cls._table}.", f"{where}.", 1)) from None
