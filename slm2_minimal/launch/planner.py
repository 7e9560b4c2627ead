"""What a run will need: memory, step time, communication, GPU-hours, cost, energy.

Plain arithmetic on a `RunConfig`, for GPUs that need not be there (report sections 2
and 7). A number of the report carries the status that its source gives it. Memory is
that of live tensors (launch/memory.py); what the allocator adds is covered by a
reserve. Tensor parallelism is left out. In the formulas: N parameters, V vocabulary, L
layers, C channels, I width of the MLP, T tokens in a sequence; R ranks that share what
is sharded.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from slm2_minimal.config import CHECKPOINTING, SHARDED, STRATEGIES, ConfigError, RunConfig
from slm2_minimal.distributed.device import DATA_SHEET_PEAK
from slm2_minimal.launch.memory import (
    GPUS_PER_NODE,
    Memory,
    memory,
    root_and_block,
    shard_ranks,
    state_bytes,
)
from slm2_minimal.model.flops import flops_per_token
from slm2_minimal.report import KG_CO2_PER_KWH, PUE, REPORT_HOURS, REPORT_MWH

# Bytes kept free for the CUDA context, libraries' workspaces and fragmentation:
# assumption, not measured
RESERVE = 2e9


@dataclass(frozen=True)
class GPU:
    """One GPU as its data sheet has it, and what a run is assumed to get out of it.

    A node of 8 sends 400 Gb/s with the 40 GB card: that of AWS P4d, which the card of
    the model names (confirmed), by its data sheet. Assumed for the others: one adapter
    of 200 Gb/s a GPU for the 80 GB card, one of 400 Gb/s for later ones.
    """

    memory: float  # bytes; the sheet's GB read as 1e9, the cautious reading
    peak: float  # FLOP/s, dense bf16
    achieved: float  # FLOP/s where nothing else is said
    achieved_source: str
    link: float  # bytes/s per GPU inside a node, one direction of NVLink
    network: float  # bytes/s per node, one direction
    watts: float
    usd_per_hour: float | None = None


_A100, _H100, _H200 = (DATA_SHEET_PEAK[name] for name in ("A100", "H100", "H200"))
_AS_40GB = "assumed: as the report's 40 GB card"
_ASSUMED = "assumed: 40% of peak, not measured"
# The report's card: its speed and its price are confirmed.
_REPORTS_CARD = GPU(40e9, _A100, 170e12, "report: ~170, confirmed", 300e9, 50e9, 400, 3.5)
GPUS: dict[str, GPU] = {
    "a100-40gb": _REPORTS_CARD,
    "a100-80gb": GPU(80e9, _A100, 170e12, _AS_40GB, 300e9, 200e9, 400),
    "h100-80gb": GPU(80e9, _H100, 0.4 * _H100, _ASSUMED, 450e9, 400e9, 700),
    "h200-141gb": GPU(141e9, _H200, 0.4 * _H200, _ASSUMED, 450e9, 400e9, 700),
}


@dataclass(frozen=True)
class Plan:
    """A run in numbers. Bytes, seconds, FLOP/s; MWh, tonnes of carbon dioxide."""

    gpus: int
    gpu: str
    strategy: str
    checkpointing: str
    accumulation: int
    memory: Memory
    flops_per_token: int
    flops: float  # a second and GPU
    flops_source: str
    mfu: float
    step_seconds: float
    communication_seconds: float
    tokens: int
    gpu_hours: float
    usd_per_hour: float | None  # None: no price known
    usd: float | None
    mwh: float
    tonnes_co2: float

    @property
    def fits(self) -> bool:
        """Whether the memory and the reserve are there."""
        return self.memory.total + RESERVE <= GPUS[self.gpu].memory


def communication(config: RunConfig, gpus: int, strategy: str, gpu: GPU) -> tuple[float, float]:
    """(bytes that a rank sends in a step, seconds that this takes at full bandwidth).

    To compare with the step, into which it must be hidden. Latency is left out, so
    times are lower bounds. In a ring of R ranks, reduce-scatter and all-gather of S
    bytes each send (R - 1) / R S, an all-reduce twice that (Patarasuk and Yuan 2009).

    A ring through several nodes crosses each node's edge once, so all its bytes pass
    the node's network. hybrid's rings among the repetitions share it: R of them, at
    most 8.
    """
    if strategy == "single":
        return 0.0, 0.0
    count = config.model.num_parameters()
    bandwidth = gpu.network if gpus > GPUS_PER_NODE else gpu.link

    # ddp: all-reduce of 4 N. zero1: reduce-scatter of 4 N, all-gather of 2 N
    if strategy in ("ddp", "zero1"):
        volume = 8 * count if strategy == "ddp" else 6 * count
        sent = (gpus - 1) / gpus * volume
        return sent, sent / bandwidth

    # Per micro-batch: all-gather of 2 N twice, once outside the blocks; reduce-scatter
    shards = shard_ranks(config, gpus, strategy)
    root, block = root_and_block(config.model)
    gathered = 2 * root + 4 * block * config.model.num_hidden_layers
    volume = accumulation(config, gpus) * (gathered + 4 * count)
    sent = (shards - 1) / shards * volume
    if strategy == "fsdp":
        return sent, sent / bandwidth

    # hybrid: all-reduce of 4 N / R among the repetitions, once a step
    repetitions = gpus // shards
    among = 2 * (repetitions - 1) / repetitions * 4 * count / shards
    rings = min(shards, GPUS_PER_NODE) if gpus > GPUS_PER_NODE else 1
    inside = gpu.link if GPUS_PER_NODE % shards == 0 else bandwidth
    return sent + among, sent / inside + among * rings / bandwidth


def accumulation(config: RunConfig, gpus: int) -> int:
    """Micro-batches of a rank in a step."""
    tokens = config.train.micro_batch_size * config.data.seq_len
    return config.train.global_batch_tokens // (gpus * tokens)


def plan(
    config: RunConfig,
    gpus: int,
    gpu: str,
    strategy: str | None = None,
    checkpointing: str | None = None,
    *,
    tflops: float | None = None,
    mfu: float | None = None,
    usd_per_hour: float | None = None,
) -> Plan:
    """The whole run in numbers.

    `strategy` and `checkpointing` left out are those of `config.parallel`; hybrid's
    shards always are. A GPU's speed, all waiting included, is given in TFLOP/s or as a
    share of its peak, `mfu`; left out, it is the GPU's own.

    Step seconds = executed FLOP per token x tokens a step / (GPUs x FLOP/s). Under full
    checkpointing the blocks' forward pass is executed once more: a third of all but the
    head's 6 V C, less down_proj, 2 L C I, whose output nothing needs again. The plan's
    MFU counts no repetition. GPU-hours lose nothing to restarts, validation or saving.
    MWh = hours x data-sheet watts of the GPU x PUE / 1e6.

    Raises ConfigError for what does not exist, does not go together, or no GPU has.
    """
    train, model = config.train, config.model
    checkpointing = checkpointing or config.parallel.checkpointing
    strategy = strategy or config.parallel.strategy
    if strategy == "auto":
        strategy = "single" if gpus == 1 else "zero1"
    _check(config, gpus, gpu, strategy, checkpointing)
    card = GPUS[gpu]
    flops, source = _flops(card, tflops, mfu)
    price = card.usd_per_hour if usd_per_hour is None else usd_per_hour
    if price is not None and not 0 <= price < math.inf:
        raise ConfigError(f"usd_per_hour = {price}: must be a number from 0 on; the report has 3.5")

    # A step
    useful = flops_per_token(model, config.data.seq_len)
    executed: float = useful
    if checkpointing == "full":
        head = 6 * model.vocab_size * model.hidden_size
        down = 2 * model.num_hidden_layers * model.hidden_size * model.intermediate_size
        executed += (useful - head) / 3 - down
    seconds = executed * train.global_batch_tokens / (gpus * flops)
    _, communication_seconds = communication(config, gpus, strategy, card)

    # The run
    hours = train.steps * seconds * gpus / 3600
    mwh = hours * card.watts * PUE / 1e6
    return Plan(
        gpus=gpus,
        gpu=gpu,
        strategy=strategy,
        checkpointing=checkpointing,
        accumulation=accumulation(config, gpus),
        memory=memory(config, gpus, strategy, checkpointing),
        flops_per_token=useful,
        flops=flops,
        flops_source=source,
        mfu=flops * useful / executed / card.peak,
        step_seconds=seconds,
        communication_seconds=communication_seconds,
        tokens=train.steps * train.global_batch_tokens,
        gpu_hours=hours,
        usd_per_hour=price,
        usd=None if price is None else hours * price,
        mwh=mwh,
        tonnes_co2=mwh * KG_CO2_PER_KWH,
    )


def table(config: RunConfig, chosen: Plan) -> str:
    """One page for the terminal: the step, what fits, communication, the whole run."""
    memory_lines = "\n".join(_memory(config, chosen))
    return "\n\n".join((_step(config, chosen), memory_lines, _run(config, chosen)))


def _step(config: RunConfig, chosen: Plan) -> str:
    train, peak = config.train, GPUS[chosen.gpu].peak
    batch = f"{chosen.gpus} x micro-batch {train.micro_batch_size} x {config.data.seq_len}"
    seconds = _short(chosen.step_seconds, 3)
    achieved = f"{chosen.flops / 1e12:.0f} TFLOP/s a GPU ({chosen.flops_source})"
    flops = f"{chosen.flops_per_token:.3e} FLOP a token = 6 (N - V C) + 12 L C T"
    return f"""\
{chosen.gpus} x {chosen.gpu} in nodes of {GPUS_PER_NODE} (assumed), {chosen.strategy}, \
activation checkpointing {chosen.checkpointing}
model  {config.model.num_parameters():,} parameters; {flops}
batch  {train.global_batch_tokens:,} tokens = {batch} x accumulation {chosen.accumulation}
step   {seconds} s at {achieved}: MFU {chosen.mfu:.1%} of {peak / 1e12:.0f} (data sheet)"""


def _memory(config: RunConfig, chosen: Plan) -> Iterator[str]:
    """Every strategy, and every micro-batch under the chosen one."""
    gpus, card = chosen.gpus, GPUS[chosen.gpu]
    kinds = "".join(f"{kind:<12}" for kind in CHECKPOINTING).rstrip()
    room = f"the {card.memory / 1e9:.0f} of the card less {RESERVE / 1e9:.0f} kept free"
    yield f"memory in GB a rank, live tensors; (no): more than {room}"
    header = f"{'weights':>9}{'gradients':>11}{'optimizer':>11}"
    yield f"{'':<14}{header}   peak: {kinds}   sent a step, s at full bandwidth"
    for strategy in _possible(config, gpus):
        shards = shard_ranks(config, gpus, strategy)
        accumulates = chosen.accumulation > 1
        states = state_bytes(config.model, strategy, shards, accumulates=accumulates)
        weights, gradients, optimizer = (size / 1e9 for size in states)
        sent, seconds = communication(config, gpus, strategy, card)
        yield (
            f"{strategy:<14}{weights:>9.2f}{gradients:>11.2f}{optimizer:>11.2f}{'':9}"
            f"{_peaks(config, chosen, strategy)}{sent / 1e9:>10.1f} GB{seconds:>9.3f}"
        )

    sequences = config.train.global_batch_tokens // (gpus * config.data.seq_len)
    for size in (1, 2, 4, 8, 16):
        if sequences % size == 0:
            other = replace(config, train=config.train.replace(micro_batch_size=size))
            name, peaks = f"micro-batch {size}", _peaks(other, chosen, chosen.strategy)
            yield f"{name:<14}{'with ' + chosen.strategy:>31}{'':9}{peaks}".rstrip()


def _peaks(config: RunConfig, chosen: Plan, strategy: str) -> str:
    """The peak under each kind of checkpointing, in columns."""
    columns = ""
    for kind in CHECKPOINTING:
        total = memory(config, chosen.gpus, strategy, kind).total
        mark = "" if total + RESERVE <= GPUS[chosen.gpu].memory else " (no)"
        columns += f"{total / 1e9:.1f}{mark}".ljust(12)[:12]
    return columns


def _run(config: RunConfig, chosen: Plan) -> str:
    """With the report's own numbers, where the plan is of its run on its cards."""
    card, train = GPUS[chosen.gpu], config.train
    days = _short(train.steps * chosen.step_seconds / 86400)
    tokens, hours = _short(chosen.tokens, 3), _short(chosen.gpu_hours)
    cost = "cost: no price known; give the USD of a GPU-hour"
    if chosen.usd is not None:
        source = "report: confirmed" if chosen.usd_per_hour == card.usd_per_hour else "given"
        cost = f"{_short(chosen.usd, 0)} USD at {chosen.usd_per_hour:g} a GPU-hour ({source})"
    lines = f"""\
run    {train.steps:,} steps, {tokens} tokens, {days} days: {hours} GPU-hours
       {cost}
       {_short(chosen.mwh)} MWh at {card.watts:.0f} W a GPU (data sheet) and PUE {PUE} \
(report: secondary)
       {_short(chosen.tonnes_co2)} t CO2 at {KG_CO2_PER_KWH} kg/kWh (unverified)"""

    full = RunConfig.preset("stablelm-2-1_6b")
    ours = (config.model, train.steps, train.global_batch_tokens, chosen.gpus, card)
    if ours != (full.model, full.train.steps, full.train.global_batch_tokens, 512, _REPORTS_CARD):
        return lines
    average_watts = REPORT_MWH * 1e6 / REPORT_HOURS / PUE
    sheet_mwh = REPORT_HOURS * card.watts * PUE / 1e6
    return f"""{lines}
report 92k GPU-hours, 322k USD at 3.5 a GPU-hour, MFU 54.5% (confirmed)
       30 MWh (secondary), that is {average_watts:.0f} W a GPU; {card.watts:.0f} W for 92k hours \
is {sheet_mwh:.1f} MWh (derived from secondary)
       11 t CO2 (secondary)"""


def _short(value: float, digits: int = 1) -> str:
    """75,740 as 75.7k, 4.19e12 as 4.2T; small numbers keep three digits."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{digits}f}{letter}"
    return f"{value:.{digits}f}" if value >= 1 else f"{value:.3g}"


def _flops(card: GPU, tflops: float | None, mfu: float | None) -> tuple[float, str]:
    """(FLOP/s of one GPU, where the figure is from)."""
    if tflops is not None and mfu is not None:
        raise ConfigError(f"mfu = {mfu}: says the same as tflops = {tflops}; give one of them")
    if tflops is not None:
        name, value, limit, unit = "tflops", tflops, card.peak / 1e12, 1e12
    elif mfu is not None:
        name, value, limit, unit = "mfu", mfu, 1.0, card.peak
    else:
        return card.achieved, card.achieved_source
    if not 0 < value <= limit:
        raise ConfigError(
            f"{name} = {value}: must be above 0 and at most the peak, {limit:g}; the report has 170"
            " TFLOP/s, mfu 0.545"
        )
    return value * unit, "given"


def _check(config: RunConfig, gpus: int, gpu: str, strategy: str, checkpointing: str) -> None:
    """Raise ConfigError for what cannot be planned."""
    known: dict[str, tuple[str, tuple[str, ...]]] = {
        "gpu": (gpu, tuple(GPUS)),
        "strategy": (strategy, STRATEGIES),
        "checkpointing": (checkpointing, CHECKPOINTING),
    }
    for name, (value, names) in known.items():
        if value not in names:
            raise ConfigError(f"{name} = {value!r}: unknown; choose one of {', '.join(names)}")
    if config.parallel.tensor_parallel > 1:
        raise ConfigError(
            f"parallel.tensor_parallel = {config.parallel.tensor_parallel}: is not planned; set it"
            " to 1 to plan without it"
        )
    if config.train.dtype == "float32":
        raise ConfigError(
            "train.dtype = 'float32': the rates of a plan are those of bf16; use bfloat16 or auto"
        )

    # GPUs that share the batch and fill their nodes
    tokens = config.train.micro_batch_size * config.data.seq_len
    micro_batches = config.train.global_batch_tokens // tokens
    nearest = _nearest(gpus, micro_batches)
    if gpus != nearest:
        raise ConfigError(
            f"gpus = {gpus}: must share {micro_batches} micro-batches of {tokens} tokens evenly"
            f" and, above {GPUS_PER_NODE}, fill nodes of {GPUS_PER_NODE}; the nearest is {nearest}"
        )
    reason = _why_not(config, gpus, strategy)
    if reason:
        raise ConfigError(
            f"strategy = {strategy!r}: {reason}; use {', '.join(_possible(config, gpus))}"
        )


def _nearest(gpus: int, micro_batches: int) -> int:
    """The number closest to `gpus` that divides the batch and fills its nodes."""
    inside = min(max(gpus, 1), micro_batches)
    for distance in range(inside):
        for n in (inside - distance, inside + distance):
            if micro_batches % n == 0 and (n < GPUS_PER_NODE or n % GPUS_PER_NODE == 0):
                return n
    return 1


def _possible(config: RunConfig, gpus: int) -> list[str]:
    """The strategies of a run on so many GPUs."""
    return [strategy for strategy in STRATEGIES if not _why_not(config, gpus, strategy)]


def _why_not(config: RunConfig, gpus: int, strategy: str) -> str:
    """What keeps a strategy from a run on so many GPUs; empty where it is possible."""
    shards = shard_ranks(config, gpus, strategy)
    if strategy == "single" and gpus > 1:
        return f"is for one GPU, not {gpus}"
    if strategy in SHARDED and config.model.tie_word_embeddings:
        return "cannot shard tied embeddings (model.tie_word_embeddings)"
    if strategy == "hybrid" and (gpus <= shards or gpus % shards):
        return (
            f"needs more GPUs than the {shards} that share the shards, and a multiple of them, not"
            f" {gpus}"
        )
    return ""
