"""What a run will need before it starts: memory per rank, step time, communication, GPU-hours, cost, energy (report sections 3 and 8).

Plain arithmetic on a `RunConfig`, for GPUs that need not be there. Every formula stands in a docstring with its units; a number of the
report carries the status that its source gives it. Bytes are bytes of live tensors: what the allocator adds is covered by a reserve.
Tensor parallelism is left out. N parameters, n tokens in a micro-batch, C, I, V, L, H, T as in the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from slm2_minimal.config import ConfigError, ModelConfig, RunConfig
from slm2_minimal.train.device import DATA_SHEET_PEAK
from slm2_minimal.train.loss import CHUNK_BYTES
from slm2_minimal.train.metrics import flops_per_token

STRATEGIES = ("single", "ddp", "zero1", "fsdp", "hybrid")
CHECKPOINTING = ("none", "selective", "full")
GPUS_PER_NODE = 8  # assumption for every GPU below; the report's 64 nodes of 8 (confirmed)
RESERVE = 2e9  # bytes kept free for the CUDA context, libraries' workspaces and fragmentation: assumption, not measured
PUE = 1.1  # power of the data centre over that of the GPUs: the report's (secondary)
KG_CO2_PER_KWH = 0.385  # unverified
REPORT_HOURS, REPORT_MWH = 92_000, 30  # confirmed, secondary


@dataclass(frozen=True)
class GPU:
    """One GPU as its maker's data sheet has it, and what a run is assumed to get out of it.

    `link` is one direction of NVLink, half of the data sheet's figure. `network` is what a whole node of 8 sends, an assumption
    everywhere: the report does not name it. 400 Gb/s a node for the 40 GB card as in cloud nodes of its time; one 200 Gb/s adapter a
    GPU for the 80 GB card, one of 400 Gb/s for later ones.
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
    "a100-40gb": GPU(40e9, _A100, 170e12, "report: ~170, confirmed", 300e9, 50e9, 400, usd_per_hour=3.5),  # price: confirmed
    "a100-80gb": GPU(80e9, _A100, 170e12, "assumed: as the report's 40 GB card", 300e9, 200e9, 400),
    "h100-80gb": GPU(80e9, _H100, 0.4 * _H100, _ASSUMED, 450e9, 400e9, 700),
    "h200-141gb": GPU(141e9, DATA_SHEET_PEAK["H200"], 0.4 * DATA_SHEET_PEAK["H200"], _ASSUMED, 450e9, 400e9, 700),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the moment of a step when most are live."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept by the forward pass for the backward pass
    working: float  # the loss, one block's backward pass, 16-bit copies and gathered weights

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


@dataclass(frozen=True)
class Plan:
    """A run in numbers. Bytes, seconds and FLOP/s; energy in MWh, carbon dioxide in tonnes. `usd` is None without a known price."""

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


def block_bytes(config: ModelConfig, seq_len: int, checkpointing: str = "none", *, bf16: bool = True, masked: bool = True) -> int:
    """Bytes per token that one block's forward pass keeps for its backward pass. With a = 2 bytes under bf16 autocast, 4 in fp32:

    none: 8 C (the residual stream before both norms, fp32) + 16 (their means and deviations) + 5 a C under autocast, else 2 a C (the
    normalised inputs: norms give fp32, and each of the five projections keeps its own 16-bit cast) + a (3 C + 2 K) (q, k, v, the output
    of attention, and its copy in the order that o_proj reads; K = width of k and v) + 4 H (log-sum-exp: no scores are stored)
    + 4 a I (gate, silu, up, their product) + a T if masked (SDPA makes a number of every flag of a document mask).
    selective: 4 C + 4 H + a (4 C + 2 K + 2 I): the block's input and the outputs of attention and of matrix products; norms,
    rotary, SwiGLU's products and casts are computed again. full: 4 C, the input alone; the whole block runs twice.

    CUDA is meant, with flash attention where there is no mask and the memory-efficient kernel where there is one. The CPU's flash kernel
    keeps the same tensors, so the tests measure there. What differs: the memory-efficient kernel writes its output in o_proj's
    order, so the copy, a C, is counted too much; CUDA's norms make fp32 of 16-bit weights' bf16 stream, which the CPU's do not.
    No dropout. From the model's own code (model/block.py, model/attention.py); nothing here is the report's.
    """
    size, channels = (2 if bf16 else 4), config.hidden_size
    keys, heads = config.num_key_value_heads * config.head_dim, config.num_attention_heads
    if checkpointing == "full":
        return 4 * channels
    if checkpointing == "selective":
        return 4 * channels + 4 * heads + size * (4 * channels + 2 * keys + 2 * config.intermediate_size)
    normalised = (5 if bf16 else 2) * size * channels
    attention = size * (3 * channels + 2 * keys) + 4 * heads + size * seq_len * masked
    return 8 * channels + 16 + normalised + attention + 4 * size * config.intermediate_size


def loss_bytes(config: ModelConfig, tokens: int, weight_size: int, *, bf16: bool = True) -> int:
    """Bytes that the chunked cross-entropy works with at its worst moment; train/loss.py is the source.

    Its forward pass holds 4 V C (fp32 gradient of the head), a V C (a chunk's share of it), 2 V C (the head in bf16, where the weights
    are fp32), and per row of a chunk V (4 + 2 for bf16) of logits and (a + 4) C of states; while the next chunk is made, the one before
    it still lives. Its backward pass holds the gradient twice, 8 V C, and 2 V C as bf16 where the weights are. Both: 8 C per token, the
    hidden states and their gradient in fp32.
    """
    size, table = (2 if bf16 else 4), config.vocab_size * config.hidden_size
    limit = max(1, CHUNK_BYTES // (4 * config.vocab_size))
    first, second = min(limit, tokens), max(0, min(limit, tokens - limit))
    logits = config.vocab_size * (6 if bf16 else 4)
    share = max(size * table, first * config.hidden_size * (6 if bf16 else 4))  # of the head's gradient, or of the states'
    chunk = first * (logits + size * config.hidden_size) + max(share, second * logits)
    head_copy = 2 * table if bf16 and weight_size == 4 else 0
    backward = 8 * table + (2 * table if weight_size == 2 else 0)
    return 8 * config.hidden_size * tokens + max(head_copy + 4 * table + chunk, backward)


def state_bytes(config: ModelConfig, strategy: str, shards: int, *, bf16: bool = True) -> tuple[float, float, float]:
    """Bytes per rank of weights, gradients and optimizer, with `shards` ranks sharing what is sharded (1 for single and ddp):

    single, ddp: weights 4 N in fp32; gradients 4 N (ddp: as views of its buckets); AdamW 8 N, and 4 per tensor for its step count.
    zero1: weights 2 N in bf16 (4 N without bf16); gradients 4 N, added up in fp32, and 4 N / R once reduced; fp32 weights and moments
    12 N / R, also a step count per tensor. fsdp, hybrid: 4 N / R, 4 N / R, 8 N / R. A shard is an even part: padding is not counted.
    ZeRO's stages are Rajbhandari et al. 2020; the report used stage 1 with bf16 and fp32 reduction (confirmed).
    """
    count = config.num_parameters()
    in_block = 7 + 3 * config.use_qkv_bias + 2 * (1 + config.norm_bias)
    tensors = (1 if config.tie_word_embeddings else 2) + config.num_hidden_layers * in_block + 1 + config.final_norm_bias
    if strategy in ("single", "ddp"):
        return 4 * count, 4 * count, 8 * count + 4 * tensors
    if strategy == "zero1":
        return (2 if bf16 else 4) * count, 4 * count + 4 * count / shards, 12 * count / shards + 4 * tensors
    return 4 * count / shards, 4 * count / shards, 8 * count / shards + 4 * tensors


def memory(config: RunConfig, gpus: int, strategy: str, checkpointing: str = "none", *, masked: bool = True) -> Memory:
    """Bytes per rank at the worst of three moments of a step (`state_bytes`, `block_bytes` and `loss_bytes` say what adds up):

    the loss, all activations kept; the backward pass of the last block, all that it computes again plus 2 a I + 4 C per token, 2 C more
    under autocast, for gradients of activations; its end, all gradients there and one of the embedding, w V C, on its way into them.
    Gradients of an earlier micro-batch are held throughout; only a single GPU without accumulation has none until its backward pass.
    Also counted, per token: 4 C + 8 for the final norm's input and statistics, 32 of indices, 12 per rotary pair, and T of flags if
    `masked`: some row holds several documents, as packed text does. fp32 weights under autocast have a bf16 copy of every matrix
    of the blocks, held till the block's backward pass; under checkpointing till the forward pass ends. fsdp and hybrid gather in bf16
    embedding, head and final norm for the whole step and two blocks at a time, and reduce gradients in fp32 beside the bf16 ones.
    With train.dtype = "float32" all of this is fp32.
    """
    model, length, bf16 = config.model, config.data.seq_len, config.train.dtype != "float32"
    size, layers, table = (2 if bf16 else 4), model.num_hidden_layers, model.vocab_size * model.hidden_size
    tokens, root, block = config.train.micro_batch_size * length, *_root_and_block(model)
    gathers, weight_size = strategy in ("fsdp", "hybrid"), (4 if strategy in ("single", "ddp") else size)
    weights, gradients, optimizer = state_bytes(model, strategy, _shards(gpus, strategy), bf16=bf16)
    held = strategy != "single" or config.train.global_batch_tokens > gpus * tokens

    whole = tokens * block_bytes(model, length, bf16=bf16, masked=masked)
    kept = tokens * block_bytes(model, length, checkpointing, bf16=bf16, masked=masked)
    around = tokens * (4 * model.hidden_size + 8 + 32 + 12 * (model.rotary_dim // 2) + length * masked)
    copies = 2 * block if bf16 and weight_size == 4 else 0
    gathered, reduced = (size * (root + 2 * block), size + 4) if gathers else (0, 0)
    backward = tokens * (2 * size * model.intermediate_size + (6 if bf16 else 4) * model.hidden_size)
    moments = (
        Memory(
            weights, gradients if held else 0, optimizer, layers * kept + around,
            loss_bytes(model, tokens, weight_size, bf16=bf16) + layers * copies + gathered,
        ),
        Memory(
            weights, gradients if held else 4 * table, optimizer, (layers - 1) * kept + whole + around,
            backward + copies * (layers if checkpointing == "none" else 1) + gathered + reduced * block + (size * table if gathers else 0),
        ),
        Memory(
            weights, gradients, optimizer, around + (0 if gathers else whole),
            size * root + reduced * root if gathers else weight_size * table * held,
        ),
    )  # fmt: skip
    return max(moments, key=lambda moment: moment.total)


def communication(config: RunConfig, gpus: int, strategy: str, gpu: GPU) -> tuple[float, float]:
    """Bytes that a rank sends in a step, and seconds at full bandwidth: to compare with the step, into which it must be hidden.

    A ring of R ranks passes S bytes on in R - 1 steps of S / R, so reduce-scatter and all-gather each send (R - 1) / R S and an all-reduce,
    which is one after the other, twice that (Patarasuk and Yuan 2009). Latency is left out, so times are lower bounds. S in bytes:
    ddp: all-reduce of 4 N (fp32 gradients), once a step. zero1: reduce-scatter of 4 N, all-gather of 2 N (bf16 weights), once a step.
    fsdp: per micro-batch all-gather of 2 N before the forward and again before the backward pass (embedding and head stay after the
    first) and reduce-scatter of 4 N. hybrid: the same inside a node, and an all-reduce of 4 N / 8 among the nodes, once a step.

    Inside a node a rank's bandwidth is its link. A ring through several nodes crosses each node's edge once, so all its bytes pass the
    node's network; hybrid's 8 rings among the nodes share it.
    """
    count, (root, block), nodes = config.model.num_parameters(), _root_and_block(config.model), gpus // GPUS_PER_NODE
    micro_batches = config.train.global_batch_tokens // (gpus * config.train.micro_batch_size * config.data.seq_len)
    shards = _shards(gpus, strategy)
    if strategy == "single":
        return 0.0, 0.0
    if strategy in ("ddp", "zero1"):
        volume = 8 * count if strategy == "ddp" else 6 * count
        sent = (gpus - 1) / gpus * volume
        return sent, sent / (gpu.network if nodes > 1 else gpu.link)
    volume = micro_batches * (2 * root + 4 * block * config.model.num_hidden_layers + 4 * count)
    sent = (shards - 1) / shards * volume
    if strategy == "fsdp":
        return sent, sent / (gpu.network if nodes > 1 else gpu.link)
    among = 2 * (nodes - 1) / nodes * 4 * count / shards
    return sent + among, sent / gpu.link + among * shards / gpu.network


def plan(
    config: RunConfig,
    gpus: int,
    gpu: str,
    strategy: str | None = None,
    checkpointing: str = "none",
    *,
    tflops: float | None = None,
    mfu: float | None = None,
    usd_per_hour: float | None = None,
) -> Plan:
    """The whole run in numbers. `strategy` left out is zero1, as in the report, and single on one GPU.

    step seconds = executed FLOP per token x tokens a step / (GPUs x rate). `rate` is what a GPU achieves in TFLOP/s, all waiting included
    (so communication is not added again), or as a share of its peak, `mfu`; left out, the GPU's own. Executed is `flops_per_token`, with
    full checkpointing also the blocks' forward pass once more, a third of all but the head's 6 V C. The plan's MFU counts no repetition:
    flops_per_token x tokens / (step seconds x GPUs x peak), against the data sheet's dense bf16 peak.
    GPU-hours = steps x step seconds x GPUs / 3600, nothing lost to restarts, validation or saving. MWh = hours x data-sheet watts x PUE
    / 1e6, the GPUs' power only; t CO2 = MWh x kg/kWh.

    Raises ConfigError for an unknown GPU, strategy or checkpointing, a number of GPUs that cannot share the batch or fill its nodes,
    a rate that no GPU has, a negative price.
    """
    strategy = strategy or ("single" if gpus == 1 else "zero1")
    _check(config, gpus, gpu, strategy, checkpointing)
    card, train = GPUS[gpu], config.train
    rate, source = _rate(card, tflops, mfu)
    price = card.usd_per_hour if usd_per_hour is None else usd_per_hour
    if usd_per_hour is not None and usd_per_hour < 0:
        raise ConfigError(f"usd_per_hour = {usd_per_hour}: must not be negative; the report has 3.5")
    flops = flops_per_token(config.model, config.data.seq_len)
    head = 6 * config.model.vocab_size * config.model.hidden_size
    executed = flops + ((flops - head) / 3 if checkpointing == "full" else 0)
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
    """One page for the terminal: the step, what fits and what does not, communication, and the whole run beside the report's."""
    card, train, model = GPUS[chosen.gpu], config.train, config.model
    lines = [
        f"{chosen.gpus} x {chosen.gpu}, {chosen.strategy}, activation checkpointing {chosen.checkpointing}",
        f"model  {model.num_parameters():,} parameters; {chosen.flops_per_token:.3e} FLOP a token = 6 (N - V C) + 12 L C T",
        f"batch  {train.global_batch_tokens:,} tokens = {chosen.gpus} x micro-batch {train.micro_batch_size} x {config.data.seq_len} "
        f"x accumulation {chosen.accumulation}",
        f"step   {_short(chosen.step_seconds, 3)} s at {chosen.rate / 1e12:.0f} TFLOP/s a GPU ({chosen.rate_source}): MFU {chosen.mfu:.1%} "
        f"of {card.peak / 1e12:.0f} (data sheet)",
        "",
        f"memory in GB a rank, live tensors; (no): more than the {card.memory / 1e9:.0f} of the card less {RESERVE / 1e9:.0f} kept free",
        f"{'':<14}{'weights':>9}{'gradients':>11}{'optimizer':>11}   peak: {_HEADER}   sent a step, s at full bandwidth",
    ]
    several = ("ddp", "zero1", "fsdp", "hybrid") if chosen.gpus > GPUS_PER_NODE else ("ddp", "zero1", "fsdp")
    for strategy in several if chosen.gpus > 1 else (chosen.strategy,):
        parts = state_bytes(model, strategy, _shards(chosen.gpus, strategy))
        sent, seconds = communication(config, chosen.gpus, strategy, card)
        states = f"{parts[0] / 1e9:>9.2f}{parts[1] / 1e9:>11.2f}{parts[2] / 1e9:>11.2f}"
        lines.append(f"{strategy:<14}{states}{'':9}{_peaks(config, chosen, strategy)}{sent / 1e9:>10.1f} GB{seconds:>9.3f}")
    rows = train.global_batch_tokens // (chosen.gpus * config.data.seq_len)
    for size in [size for size in (1, 2, 4, 8, 16) if rows % size == 0]:
        other = replace(config, train=train.replace(micro_batch_size=size))
        lines.append(f"{f'micro-batch {size}':<14}{'with ' + chosen.strategy:>31}{'':9}{_peaks(other, chosen, chosen.strategy)}".rstrip())
    return "\n".join([*lines, "", *_whole_run(config, chosen)])


_HEADER = "".join(f"{name:<12}" for name in CHECKPOINTING).rstrip()


def _peaks(config: RunConfig, chosen: Plan, strategy: str) -> str:
    """The peak under each kind of checkpointing, in columns."""
    totals = (memory(config, chosen.gpus, strategy, kind).total for kind in CHECKPOINTING)
    return "".join(
        f"{total / 1e9:.1f}{'' if total + RESERVE <= GPUS[chosen.gpu].memory else ' (no)':<12}"[:12].ljust(12) for total in totals
    )


def _whole_run(config: RunConfig, chosen: Plan) -> Iterator[str]:
    """Hours, cost, energy and carbon dioxide; the report's own numbers below where the plan is of its run on its cards."""
    card, train, full = GPUS[chosen.gpu], config.train, RunConfig.preset("stablelm-2-1_6b")
    days, price = train.steps * chosen.step_seconds / 86400, chosen.usd_per_hour
    yield f"run    {train.steps:,} steps, {_short(chosen.tokens, 3)} tokens, {_short(days)} days: {_short(chosen.gpu_hours)} GPU-hours"
    if chosen.usd is None:
        yield "       cost: no price known; give the USD of a GPU-hour"
    else:
        source = "report: confirmed" if price == card.usd_per_hour else "given"
        yield f"       {_short(chosen.usd, 0)} USD at {price:g} a GPU-hour ({source})"
    yield f"       {_short(chosen.mwh)} MWh at {card.watts:.0f} W a GPU (data sheet) and PUE {PUE} (report: secondary)"
    yield f"       {_short(chosen.tonnes_co2)} t CO2 at {KG_CO2_PER_KWH} kg/kWh (unverified)"
    size = (config.model, train.steps, train.global_batch_tokens, chosen.gpus, chosen.gpu)
    if size == (full.model, full.train.steps, full.train.global_batch_tokens, 512, "a100-40gb"):
        sheet, average = REPORT_HOURS * card.watts * PUE / 1e6, REPORT_MWH * 1e6 / REPORT_HOURS / PUE
        yield "report 92k GPU-hours, 322k USD at 3.5 a GPU-hour, MFU 54.5% (confirmed)"
        yield f"       30 MWh (secondary), that is {average:.0f} W a GPU; {card.watts:.0f} W for 92k hours is {sheet:.1f} MWh (derived)"
        yield "       11 t CO2 (secondary)"


def _short(value: float, digits: int = 1) -> str:
    """75,740 as 75.7k, 4.19e12 as 4.2T; small numbers keep three digits."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{digits}f}{letter}"
    return f"{value:.{digits}f}" if value >= 1 else f"{value:.3g}"


def _root_and_block(config: ModelConfig) -> tuple[int, int]:
    """Parameters outside the blocks (embedding, head, final norm), and in one block."""
    table = config.vocab_size * config.hidden_size
    root = table * (1 if config.tie_word_embeddings else 2) + config.hidden_size * (1 + config.final_norm_bias)
    return root, (config.num_parameters() - root) // config.num_hidden_layers


def _shards(gpus: int, strategy: str) -> int:
    """How many ranks share what is sharded."""
    return {"single": 1, "ddp": 1, "hybrid": GPUS_PER_NODE}.get(strategy, gpus)


def _rate(card: GPU, tflops: float | None, mfu: float | None) -> tuple[float, str]:
    """FLOP/s of one GPU, and where the figure is from."""
    if tflops is not None and mfu is not None:
        raise ConfigError(f"mfu = {mfu}: says the same as tflops = {tflops}; give one of them")
    if tflops is None and mfu is None:
        return card.rate, card.rate_source
    name, value, limit = ("mfu", mfu, 1.0) if tflops is None else ("tflops", tflops, card.peak / 1e12)
    assert value is not None
    if not 0 < value <= limit:
        raise ConfigError(f"{name} = {value}: must be above 0 and at most the peak, {limit:g}; the report has 170 TFLOP/s, mfu 0.545")
    return (value * card.peak if name == "mfu" else value * 1e12), "given"


def _check(config: RunConfig, gpus: int, gpu: str, strategy: str, checkpointing: str) -> None:
    """Raise ConfigError for what cannot be planned."""
    known: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("gpu", gpu, tuple(GPUS)), ("strategy", strategy, STRATEGIES), ("checkpointing", checkpointing, CHECKPOINTING)
    )  # fmt: skip
    for name, value, names in known:
        if value not in names:
            raise ConfigError(f"{name} = {value!r}: unknown; choose one of {', '.join(names)}")
    if config.train.dtype == "float32":
        raise ConfigError("train.dtype = 'float32': the rates of a plan are those of bf16; use bfloat16 or auto")
    micro = config.train.micro_batch_size * config.data.seq_len
    parts = config.train.global_batch_tokens // micro
    possible = [n for n in range(1, parts + 1) if parts % n == 0 and (n <= GPUS_PER_NODE or n % GPUS_PER_NODE == 0)]
    if gpus not in possible:
        raise ConfigError(
            f"gpus = {gpus}: must share {parts} micro-batches of {micro} tokens evenly and, above {GPUS_PER_NODE}, fill nodes of "
            f"{GPUS_PER_NODE}; the nearest is {min(possible, key=lambda n: abs(n - gpus))}"
        )
    if strategy == "single" and gpus > 1:
        raise ConfigError(f"strategy = 'single': is for one GPU, not {gpus}; use ddp, zero1, fsdp or hybrid")
    if strategy == "hybrid" and gpus <= GPUS_PER_NODE:
        raise ConfigError(f"strategy = 'hybrid': needs more than one node of {GPUS_PER_NODE}; use fsdp on {gpus}")
