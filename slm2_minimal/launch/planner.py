"""What a run will need before it starts: memory per rank, step time, communication,
GPU-hours, cost, energy (report sections 3 and 8).

Plain arithmetic on a `RunConfig`, for GPUs that need not be there. Every formula stands
in a docstring with its units; a number of the report carries the status that its source
gives it. Memory is that of live tensors (launch/memory.py): what the allocator adds is
covered by a reserve. Tensor parallelism is left out. N parameters, V vocabulary, L
layers, C channels, T tokens in a row.
"""

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

# bytes kept free for the CUDA context, libraries' workspaces and fragmentation:
# assumption, not measured
RESERVE = 2e9


@dataclass(frozen=True)
class GPU:
    """One GPU as its maker's data sheet has it, and what a run is assumed to get out of
    it.

    `link` is one direction of NVLink, half of the data sheet's figure. `network` is
    what a whole node of 8 sends, an assumption everywhere: the report does not name it.
    400 Gb/s a node for the 40 GB card as in cloud nodes of its time; one 200 Gb/s
    adapter a GPU for the 80 GB card, one of 400 Gb/s for later ones.
    """

    memory: float  # bytes; the sheet's GB read as 1e9, the cautious reading
    peak: float  # FLOP/s, dense bf16
    rate: float  # FLOP/s achieved where nothing else is said
    rate_source: str
    link: float  # bytes/s per GPU, inside a node
    network: float  # bytes/s per node, one direction
    watts: float
    usd_per_hour: float | None = None


_A100, _H100 = DATA_SHEET_PEAK["A100"], DATA_SHEET_PEAK["H100"]
_ASSUMED = "assumed: 40% of peak, not measured"
GPUS: dict[str, GPU] = {
    "a100-40gb": GPU(
        40e9, _A100, 170e12, "report: ~170, confirmed", 300e9, 50e9, 400, usd_per_hour=3.5
    ),  # price: confirmed
    "a100-80gb": GPU(80e9, _A100, 170e12, "assumed: as the report's 40 GB card", 300e9, 200e9, 400),
    "h100-80gb": GPU(80e9, _H100, 0.4 * _H100, _ASSUMED, 450e9, 400e9, 700),
    "h200-141gb": GPU(
        141e9, DATA_SHEET_PEAK["H200"], 0.4 * DATA_SHEET_PEAK["H200"], _ASSUMED, 450e9, 400e9, 700
    ),
}


@dataclass(frozen=True)
class Plan:
    """A run in numbers. Bytes, seconds and FLOP/s; energy in MWh, carbon dioxide in
    tonnes. `usd` is None without a known price.
    """

    gpus: int
    gpu: str
    strategy: str
    checkpointing: str
    accumulation: int
    memory: Memory
    flops_per_token: int
    rate: float
    rate_source: str
    mfu: float
    step_seconds: float
    sent_bytes: float
    communication_seconds: float
    tokens: int
    gpu_hours: float
    usd_per_hour: float | None
    usd: float | None
    mwh: float
    tonnes_co2: float

    @property
    def fits(self) -> bool:
        """Whether the memory and the reserve are there."""
        return self.memory.total + RESERVE <= GPUS[self.gpu].memory


def communication(config: RunConfig, gpus: int, strategy: str, gpu: GPU) -> tuple[float, float]:
    """Bytes that a rank sends in a step, and seconds at full bandwidth: to compare with
    the step, into which it must be hidden.

    A ring of R ranks passes S bytes on in R - 1 steps of S / R, so reduce-scatter and
    all-gather each send (R - 1) / R S and an all-reduce, which is one after the other,
    twice that (Patarasuk and Yuan 2009). Latency is left out, so times are lower
    bounds. S in bytes: ddp: all-reduce of 4 N (fp32 gradients), once a step. zero1:
    reduce-scatter of 4 N, all-gather of 2 N (bf16 weights), once a step. fsdp: per
    micro-batch all-gather of 2 N before the forward and again before the backward pass
    (embedding and head stay after the first) and reduce-scatter of 4 N. hybrid: the
    same among R ranks that share the shards, and an all-reduce of 4 N / R among the
    repetitions, once a step.

    Inside a node a rank's bandwidth is its link. A ring through several nodes crosses
    each node's edge once, so all its bytes pass the node's network; hybrid's rings
    among the repetitions, R of them and at most 8 through a node, share it.
    """
    count, (root, block), shards = (
        config.model.num_parameters(),
        root_and_block(config.model),
        shard_ranks(config, gpus, strategy),
    )
    micro_batches = config.train.global_batch_tokens // (
        gpus * config.train.micro_batch_size * config.data.seq_len
    )
    bandwidth = gpu.network if gpus > GPUS_PER_NODE else gpu.link
    if strategy == "single":
        return 0.0, 0.0
    if strategy in ("ddp", "zero1"):
        volume = 8 * count if strategy == "ddp" else 6 * count
        sent = (gpus - 1) / gpus * volume
        return sent, sent / bandwidth
    volume = micro_batches * (2 * root + 4 * block * config.model.num_hidden_layers + 4 * count)
    sent = (shards - 1) / shards * volume
    if strategy == "fsdp":
        return sent, sent / bandwidth
    repetitions = gpus // shards
    among = 2 * (repetitions - 1) / repetitions * 4 * count / shards
    rings = min(shards, GPUS_PER_NODE) if gpus > GPUS_PER_NODE else 1
    return (
        sent + among,
        sent / (gpu.link if GPUS_PER_NODE % shards == 0 else bandwidth) + among * rings / bandwidth,
    )


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
    """The whole run in numbers. `strategy` and `checkpointing` left out are those of
    `config.parallel`, `auto` being zero1, or single on one GPU; hybrid's shards are
    always those of `config.parallel`.

    step seconds = executed FLOP per token x tokens a step / (GPUs x rate). `rate` is
    what a GPU achieves in TFLOP/s, all waiting included (so communication is not added
    again), or as a share of its peak, `mfu`; left out, the GPU's own. Executed is
    `flops_per_token`, with full checkpointing also the blocks' forward pass once more,
    a third of all but the head's 6 V C, up to down_proj, whose output nothing needs
    again: less 2 L C I. The plan's MFU counts no repetition: flops_per_token x tokens /
    (step seconds x GPUs x peak), against the data sheet's dense bf16 peak. GPU-hours =
    steps x step seconds x GPUs / 3600, nothing lost to restarts, validation or saving.
    MWh = hours x data-sheet watts x PUE / 1e6, the GPUs' power only; t CO2 = MWh x
    kg/kWh.

    Raises ConfigError for an unknown GPU, strategy or checkpointing, tensor
    parallelism, a number of GPUs that cannot share the batch, fill its nodes or go with
    the strategy, a rate that no GPU has, a negative price.
    """
    strategy = strategy or config.parallel.strategy
    if strategy == "auto":
        strategy = "single" if gpus == 1 else "zero1"
    checkpointing = checkpointing or config.parallel.checkpointing
    _check(config, gpus, gpu, strategy, checkpointing)
    card, train = GPUS[gpu], config.train
    rate, source = _rate(card, tflops, mfu)
    price = card.usd_per_hour if usd_per_hour is None else usd_per_hour
    if usd_per_hour is not None and usd_per_hour < 0:
        raise ConfigError(
            f"usd_per_hour = {usd_per_hour}: must not be negative; the report has 3.5"
        )
    flops = flops_per_token(config.model, config.data.seq_len)
    head = 6 * config.model.vocab_size * config.model.hidden_size
    down = (
        2
        * config.model.num_hidden_layers
        * config.model.hidden_size
        * config.model.intermediate_size
    )
    executed = flops + ((flops - head) / 3 - down if checkpointing == "full" else 0)
    seconds = executed * train.global_batch_tokens / (gpus * rate)
    sent, waiting = communication(config, gpus, strategy, card)
    hours = train.steps * seconds * gpus / 3600
    mwh = hours * card.watts * PUE / 1e6
    return Plan(
        gpus=gpus, gpu=gpu, strategy=strategy, checkpointing=checkpointing,
        accumulation=train.global_batch_tokens // (gpus * train.micro_batch_size * config.data.seq_len),
        memory=memory(config, gpus, strategy, checkpointing),
        flops_per_token=flops, rate=rate, rate_source=source, mfu=rate * flops / executed / card.peak, step_seconds=seconds,
        sent_bytes=sent, communication_seconds=waiting,
        tokens=train.steps * train.global_batch_tokens, gpu_hours=hours,
        usd_per_hour=price, usd=None if price is None else hours * price, mwh=mwh, tonnes_co2=mwh * KG_CO2_PER_KWH,
    )  # fmt: skip


def table(config: RunConfig, chosen: Plan) -> str:
    """One page for the terminal: the step, what fits and what does not, communication,
    and the whole run beside the report's.
    """
    card, train, model = GPUS[chosen.gpu], config.train, config.model
    lines = [
        (
            f"{chosen.gpus} x {chosen.gpu}, {chosen.strategy}, activation checkpointing"
            f" {chosen.checkpointing}"
        ),
        (
            f"model  {model.num_parameters():,} parameters; {chosen.flops_per_token:.3e} FLOP a"
            " token = 6 (N - V C) + 12 L C T"
        ),
        (
            f"batch  {train.global_batch_tokens:,} tokens = {chosen.gpus} x micro-batch"
            f" {train.micro_batch_size} x {config.data.seq_len} x accumulation"
            f" {chosen.accumulation}"
        ),
        (
            f"step   {_short(chosen.step_seconds, 3)} s at {chosen.rate / 1e12:.0f} TFLOP/s a GPU"
            f" ({chosen.rate_source}): MFU {chosen.mfu:.1%} of {card.peak / 1e12:.0f} (data sheet)"
        ),
        "",
        (
            f"memory in GB a rank, live tensors; (no): more than the {card.memory / 1e9:.0f} of the"
            f" card less {RESERVE / 1e9:.0f} kept free"
        ),
        (
            f"{'':<14}{'weights':>9}{'gradients':>11}{'optimizer':>11}   peak: {_HEADER}   sent a"
            " step, s at full bandwidth"
        ),
    ]
    for strategy in _possible(config, chosen.gpus):
        parts = state_bytes(
            model,
            strategy,
            shard_ranks(config, chosen.gpus, strategy),
            accumulates=chosen.accumulation > 1,
        )
        sent, seconds = communication(config, chosen.gpus, strategy, card)
        states = f"{parts[0] / 1e9:>9.2f}{parts[1] / 1e9:>11.2f}{parts[2] / 1e9:>11.2f}"
        lines.append(
            f"{strategy:<14}{states}{'':9}{_peaks(config, chosen, strategy)}{sent / 1e9:>10.1f}"
            f" GB{seconds:>9.3f}"
        )
    rows = train.global_batch_tokens // (chosen.gpus * config.data.seq_len)
    for size in [size for size in (1, 2, 4, 8, 16) if rows % size == 0]:
        other = replace(config, train=train.replace(micro_batch_size=size))
        lines.append(
            f"{f'micro-batch {size}':<14}{'with ' + chosen.strategy:>31}{'':9}{_peaks(other, chosen, chosen.strategy)}".rstrip()
        )
    return "\n".join([*lines, "", *_whole_run(config, chosen)])


_HEADER = "".join(f"{name:<12}" for name in CHECKPOINTING).rstrip()


def _peaks(config: RunConfig, chosen: Plan, strategy: str) -> str:
    """The peak under each kind of checkpointing, in columns."""
    totals = (memory(config, chosen.gpus, strategy, kind).total for kind in CHECKPOINTING)
    return "".join(
        f"{total / 1e9:.1f}{'' if total + RESERVE <= GPUS[chosen.gpu].memory else ' (no)':<12}"[
            :12
        ].ljust(12)
        for total in totals
    )


def _whole_run(config: RunConfig, chosen: Plan) -> Iterator[str]:
    """Hours, cost, energy and carbon dioxide; the report's own numbers below where the
    plan is of its run on its cards.
    """
    card, train, full = GPUS[chosen.gpu], config.train, RunConfig.preset("stablelm-2-1_6b")
    days, price = train.steps * chosen.step_seconds / 86400, chosen.usd_per_hour
    yield (
        f"run    {train.steps:,} steps, {_short(chosen.tokens, 3)} tokens, {_short(days)} days:"
        f" {_short(chosen.gpu_hours)} GPU-hours"
    )
    if chosen.usd is None:
        yield "       cost: no price known; give the USD of a GPU-hour"
    else:
        source = "report: confirmed" if price == card.usd_per_hour else "given"
        yield f"       {_short(chosen.usd, 0)} USD at {price:g} a GPU-hour ({source})"
    yield (
        f"       {_short(chosen.mwh)} MWh at {card.watts:.0f} W a GPU (data sheet) and PUE {PUE}"
        " (report: secondary)"
    )
    yield f"       {_short(chosen.tonnes_co2)} t CO2 at {KG_CO2_PER_KWH} kg/kWh (unverified)"
    size = (config.model, train.steps, train.global_batch_tokens, chosen.gpus, chosen.gpu)
    if size == (full.model, full.train.steps, full.train.global_batch_tokens, 512, "a100-40gb"):
        sheet, average = (
            REPORT_HOURS * card.watts * PUE / 1e6,
            REPORT_MWH * 1e6 / REPORT_HOURS / PUE,
        )
        yield "report 92k GPU-hours, 322k USD at 3.5 a GPU-hour, MFU 54.5% (confirmed)"
        yield (
            f"       30 MWh (secondary), that is {average:.0f} W a GPU; {card.watts:.0f} W for 92k"
            f" hours is {sheet:.1f} MWh (derived)"
        )
        yield "       11 t CO2 (secondary)"


def _short(value: float, digits: int = 1) -> str:
    """75,740 as 75.7k, 4.19e12 as 4.2T; small numbers keep three digits."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{digits}f}{letter}"
    return f"{value:.{digits}f}" if value >= 1 else f"{value:.3g}"


def _rate(card: GPU, tflops: float | None, mfu: float | None) -> tuple[float, str]:
    """FLOP/s of one GPU, and where the figure is from."""
    if tflops is not None and mfu is not None:
        raise ConfigError(f"mfu = {mfu}: says the same as tflops = {tflops}; give one of them")
    if tflops is None and mfu is None:
        return card.rate, card.rate_source
    name, value, limit = (
        ("mfu", mfu, 1.0) if tflops is None else ("tflops", tflops, card.peak / 1e12)
    )
    assert value is not None
    if not 0 < value <= limit:
        raise ConfigError(
            f"{name} = {value}: must be above 0 and at most the peak, {limit:g}; the report has 170"
            " TFLOP/s, mfu 0.545"
        )
    return (value * card.peak if name == "mfu" else value * 1e12), "given"


def _check(config: RunConfig, gpus: int, gpu: str, strategy: str, checkpointing: str) -> None:
    """Raise ConfigError for what cannot be planned."""
    known: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("gpu", gpu, tuple(GPUS)), ("strategy", strategy, STRATEGIES), ("checkpointing", checkpointing, CHECKPOINTING)
    )  # fmt: skip
    for name, value, names in known:
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
    micro = config.train.micro_batch_size * config.data.seq_len
    parts = config.train.global_batch_tokens // micro
    possible = [
        n
        for n in range(1, parts + 1)
        if parts % n == 0 and (n <= GPUS_PER_NODE or n % GPUS_PER_NODE == 0)
    ]
    if gpus not in possible:
        raise ConfigError(
            f"gpus = {gpus}: must share {parts} micro-batches of {micro} tokens evenly and, above"
            f" {GPUS_PER_NODE}, fill nodes of {GPUS_PER_NODE}; the nearest is"
            f" {min(possible, key=lambda n: abs(n - gpus))}"
        )
    if strategy not in _possible(config, gpus):
        raise ConfigError(
            f"strategy = {strategy!r}: {_why_not(config, gpus, strategy)}; use"
            f" {', '.join(_possible(config, gpus))}"
        )


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
