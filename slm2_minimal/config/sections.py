"""The tables that say what is trained and how: [model], [schedule], [optimizer],
[parallel], [train].
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from slm2_minimal.config.errors import ConfigError
from slm2_minimal.config.section import (
    Count,
    Epsilon,
    PathText,
    PositiveFloat,
    PositiveInt,
    Strings,
    Table,
    nearest_multiple,
    section,
)

# Larger ones cannot be built: refused at once instead of after a minute of allocation.
Width = Annotated[int, Field(gt=0, le=2**20)]
IGNORE = -100  # the label of a position that is not to be learned, as in torch

SHARDED = ("zero1", "fsdp", "hybrid")
MOST_PARAMETERS = 10**13
LONGEST_SHARE = 10  # of a run: the hybrid's period is longer than the run
STRATEGIES = ("single", "ddp", *SHARDED)
CHECKPOINTING = ("none", "selective", "full")


@section("model")
class ModelConfig(Table):
    """The architecture, with the field names of Hugging Face's `StableLmConfig`.

    The defaults are Stable LM 2 1.6B (report section 2). Its weights have every norm's
    bias; the model card's parameter count is the one without those in the blocks.
    """

    vocab_size: Annotated[int, Field(gt=0, le=2**24)] = 100_352
    """V, the rows of the embedding; at least as many as the tokenizer has ids."""
    hidden_size: Width = 2048
    """C, the channels of the residual stream; a multiple of num_attention_heads."""
    intermediate_size: Width = 5632
    """The width of the MLP's inner layer."""
    num_hidden_layers: Annotated[int, Field(gt=0, le=1_000)] = 24
    """The number of blocks."""

    num_attention_heads: Width = 32
    """H, the heads of the queries."""
    num_key_value_heads: Width = 32
    """The heads of keys and values; fewer than H is grouped-query attention."""

    hidden_act: Literal["silu"] = "silu"
    """The activation inside the MLP, which is a SwiGLU."""
    max_position_embeddings: Annotated[int, Field(gt=0, le=2**24)] = 4096
    """The context: how many tokens the model can look at."""
    layer_norm_eps: Epsilon = 1e-5
    """What every LayerNorm adds to the variance."""
    rope_theta: Annotated[float, Field(ge=1, le=1e12)] = 10_000.0
    """The base of the rotary frequencies."""
    partial_rotary_factor: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The share of each head's dimensions that rotary embedding turns."""

    use_qkv_bias: bool = True
    """Whether queries, keys and values have biases."""
    norm_bias: bool = True
    """Whether the norms inside the blocks have biases."""
    final_norm_bias: bool = True
    """Whether the norm after the last block has a bias."""
    tie_word_embeddings: bool = False
    """Whether the head is the embedding's own matrix."""

    initializer_range: Annotated[float, Field(gt=0, le=100)] = 0.02
    """The standard deviation of the first weights."""
    bos_token_id: Count | None = 100_257
    """The id that begins a text, for config.json; training asks the tokenizer."""
    eos_token_id: Count | None = 100_257
    """The id that ends a text, likewise."""

    def __post_init__(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads

        # Heads divide the width, and turn in pairs
        if self.hidden_size % heads:
            raise ConfigError(
                f"model.hidden_size = {self.hidden_size}: must be a multiple of num_attention_heads"
                f" = {heads}; the nearest is {nearest_multiple(self.hidden_size, heads)}"
            )
        if heads % kv_heads:
            raise ConfigError(
                f"model.num_key_value_heads = {kv_heads}: must divide num_attention_heads ="
                f" {heads}; use {heads} for plain multi-head attention"
            )
        turns_nothing = self.rotary_dim == 0 and self.partial_rotary_factor > 0
        if self.rotary_dim % 2 or turns_nothing:
            raise ConfigError(
                f"model.partial_rotary_factor = {self.partial_rotary_factor}: gives"
                f" {self.rotary_dim} rotary dimensions of {self.head_dim}; they turn in pairs, so"
                " choose a factor that makes the number even, or 0 to turn none"
            )

        # Sizes that something can hold
        if self.num_parameters() > MOST_PARAMETERS:
            raise ConfigError(
                f"model.hidden_size = {self.hidden_size}: gives {self.num_parameters():.1e}"
                " parameters, more than any machine holds; lower it, or another size"
            )
        for name in ("bos_token_id", "eos_token_id"):
            token_id = getattr(self, name)
            if token_id is not None and token_id >= self.vocab_size:
                raise ConfigError(
                    f"model.{name} = {token_id}: must lie below vocab_size = {self.vocab_size};"
                    " take the id from the tokenizer"
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
        """The number of weights, by arithmetic alone.

        Without `embeddings` the input table is left out, as in counts of FLOPs.
        """
        channels = self.hidden_size
        table = self.vocab_size * channels

        # one block: attention with its biases, MLP, two norms
        queries = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        attention = channels * (2 * queries + 2 * keys)
        if self.use_qkv_bias:
            attention += queries + 2 * keys
        mlp = 3 * channels * self.intermediate_size
        norms = (4 if self.norm_bias else 2) * channels

        final_norm = (2 if self.final_norm_bias else 1) * channels
        total = self.num_hidden_layers * (attention + mlp + norms) + final_norm + table
        shared = self.tie_word_embeddings or not embeddings
        return total if shared else total + table


@section("schedule")
class ScheduleConfig(Table):
    """The learning rate as a function of the step, for `train.schedule`. The defaults
    are the report's (section 3) before its cooldown. In a file, a decimal in the place
    of a length is a share of train.steps: `cooldown_steps = 0.16` follows the run."""

    kind: Literal["hybrid", "cosine", "inverse_sqrt", "wsd", "constant"] = "hybrid"
    """The shape after warm-up. hybrid: a quarter of a cosine, then an inverse square
    root; cosine: half a period; wsd: constant, with a cooldown to follow."""
    peak_rate: PositiveFloat = 1e-3
    """The learning rate at the end of warm-up."""
    min_rate: Annotated[float, Field(ge=0)] = 1e-4
    """The minimum of the cosine; below peak_rate."""

    warmup_steps: Count = 9_720
    """Updates in which the rate rises from 0 to its peak."""
    decay_steps: PositiveInt = 540_000
    """The cosine's length in updates: a whole period for hybrid, half for cosine."""

    cooldown_start: Count | None = None
    """The update from which on the rate falls in a line to 0; not set: none does."""
    cooldown_steps: PositiveInt | None = None
    """How many updates that takes; goes with cooldown_start."""

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

        # What a shape needs
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

    @property
    def end(self) -> int | None:
        """The update from which on the rate falls no more; None: it never ends."""
        if self.cooldown_start is not None and self.cooldown_steps is not None:
            return self.cooldown_start + self.cooldown_steps
        return self.decay_steps if self.kind == "cosine" else None

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any]) -> Self:
        """With lengths in whole steps: a decimal is a share of train.steps."""
        table = tables.get("schedule", {})
        lengths = ("warmup_steps", "decay_steps", "cooldown_start", "cooldown_steps")
        shares = {}
        if isinstance(table, Mapping):
            shares = {name: table[name] for name in lengths if type(table.get(name)) is float}
        if not shares:
            return cls.from_table(table)

        steps = TrainConfig.from_tables(tables).steps
        for name, share in shares.items():
            if not 0 <= share <= LONGEST_SHARE:
                raise ConfigError(
                    f"schedule.{name} = {share}: a decimal is a share of train.steps, at most"
                    f" {LONGEST_SHARE:g}; write updates as an integer"
                )
        whole = {name: max(1, round(share * steps)) for name, share in shares.items()}
        if {"cooldown_start", "cooldown_steps"} <= shares.keys():
            # counted from the end, which two roundings may miss
            end = round((shares["cooldown_start"] + shares["cooldown_steps"]) * steps)
            whole["cooldown_start"] = max(0, end - whole["cooldown_steps"])
        return cls.from_table({**table, **whole})


@section("optimizer")
class OptimizerConfig(Table):
    """AdamW and clipping, with the report's values (section 3)."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """How much of the gradients' running mean stays at each update."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """How much of their squares' running mean stays."""
    eps: Epsilon = 1e-8
    """What is added to the root of that mean before it divides."""

    weight_decay: Annotated[float, Field(ge=0, le=1_000)] = 0.1
    """Decay of matrices, times the learning rate; biases and norms have none."""
    clip_norm: PositiveFloat = 1.0
    """The norm that the whole gradient is scaled down to where it is larger."""


@section("parallel")
class ParallelConfig(Table):
    """How a run is divided among its processes; the report has ZeRO stage 1 without
    model parallelism (section 3)."""

    strategy: Literal["auto", "single", "ddp", "zero1", "fsdp", "hybrid"] = "auto"
    """What each process holds. ddp: all; zero1: a shard of the optimizer; fsdp: of the
    weights too; hybrid: fsdp in groups. auto: single in one process, else zero1."""
    shard_ranks: Width | None = None
    """hybrid: how many processes share one copy; not set: those of a node."""
    tensor_parallel: Width = 1
    """How many processes share every matrix of the blocks; with zero1 or fsdp."""

    checkpointing: Literal["none", "selective", "full"] = "none"
    """Activations that are computed again instead of kept. selective: all but those of
    matrix products and attention."""
    compile: bool = False
    """Whether torch.compile makes kernels for each block."""

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


@section("train")
class TrainConfig(Table):
    """How the loop runs. Accumulation is derived from the two batch sizes."""

    steps: Annotated[int, Field(gt=0, lt=10**8)] = 500_000
    """Updates in the whole run; folders of checkpoints have eight digits."""
    global_batch_tokens: Annotated[int, Field(gt=0, le=2**36)] = 8_388_608
    """Tokens in one update, over all processes."""
    micro_batch_size: Width = 2
    """Sequences that one process takes through the model at once."""
    seed: Count = 1234
    """Decides the first weights."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto: on a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; auto measures whether bfloat16 pays. Weights stay float32."""

    output_dir: PathText = "runs/run"
    """The run's folder: checkpoints, logs, traces. A run that is there goes on."""
    start_from: PathText | None = None
    """A checkpoint to branch from: step, data position and optimizer go on."""
    init_from: PathText | None = None
    """Weights alone: of a run, a checkpoint, a Hugging Face folder or a Hub id. Step,
    data position and optimizer begin anew."""

    log_every: PositiveInt = 10
    """Updates from one line of the log to the next."""
    validate_every: PositiveInt = 2_000
    """Updates from one validation to the next; a new best is saved at once."""
    save_every: PositiveInt = 2_000
    """Updates from one checkpoint to the next."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest stay; the best stays too."""

    spike_sigmas: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 6.0
    """A batch is passed over whose loss lies so many standard deviations above the
    recent mean; 0: only where loss or gradient is not finite."""
    profile_step: Count | None = None
    """The step, counted from 0, from which on a few are traced; not set: none."""
    wandb: str | None = None
    """The Weights & Biases project that also gets the log; not set: none."""

    prompts: Strings = ()
    """What the model goes on from at the end of the run."""
    sample_tokens: Width = 64
    """How many tokens it adds to each prompt."""

    def __post_init__(self) -> None:
        if self.start_from is not None and self.init_from is not None:
            raise ConfigError(
                f"train.init_from = {self.init_from!r}: excludes train.start_from ="
                f" {self.start_from!r}; leave out the one or the other"
            )
