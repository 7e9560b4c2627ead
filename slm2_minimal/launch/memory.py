"""Bytes of live tensors on one rank of a training step, by arithmetic: what the planner
sets against a GPU's memory.

The worst of a step's moments counts: the loss, with all activations kept; the backward
pass of each block; its end, at the embedding. Tensor parallelism is left out, and so is
what an allocator adds. Letters: N parameters, R ranks that share what is sharded, V
vocabulary, H heads, T tokens in a row, widths C of the model, I of its MLP, K of its
keys; a = 2 bytes in bf16 and 4 in fp32; w, the bytes of a weight as the forward pass
finds it: 4 under single and ddp, where autocast makes bf16 of it, and a under zero1,
fsdp and hybrid.
"""

from dataclasses import dataclass, replace
from functools import partial

from slm2_minimal.config import SHARDED, ModelConfig, RunConfig
from slm2_minimal.model.loss import CHUNK_BYTES

GPUS_PER_NODE = 8  # assumption; the report's 64 nodes of 8 (confirmed)


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the moment of a step when most are live."""

    weights: float
    gradients: float
    optimizer: float
    activations: float  # kept by the forward pass for the backward pass
    # the loss, one block's backward pass, 16-bit copies, gathered weights, what is
    # being reduced
    working: float

    @property
    def total(self) -> float:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


def block_bytes(
    config: ModelConfig,
    seq_len: int,
    checkpointing: str = "none",
    *,
    weight_size: int = 4,
    bf16: bool = True,
    dense_mask: bool = False,
) -> int:
    """Bytes per token that one block's forward pass keeps for its backward pass;
    `weight_size` is w. See the module for the letters.

    none: 2 w C (the residual stream before both norms) + 16 (their means and
    deviations) + 2 a C (the normalised inputs; 5 a C under autocast, where norms give
    fp32 and each of five projections keeps its own cast) + a (3 C + 2 K) (q, k, v, the
    output of attention, and its copy in the order that o_proj reads) + 4 H
    (log-sum-exp: no scores are stored) + 4 a I (gate, silu, up, their product) + a T
    with a dense mask (SDPA makes a number of every flag). selective: w C + 4 H + a (4 C
    + 2 K + 2 I): the block's input and the outputs of attention and of matrix products;
    norms, rotary, SwiGLU's products and casts are computed again. full: w C, the input
    alone; the whole block runs twice.

    CUDA is meant; the CPU's kernels keep the same tensors, so the tests measure there,
    and nothing was measured on a GPU. What differs: CUDA's flash kernel writes its
    output in o_proj's order, so the copy, a C, is counted too much; for rows of several
    documents there is a compiled kernel, which selective checkpointing runs again, so a
    C + 4 H are; the CPU keeps statistics of a bf16 stream in bf16. No dropout. From the
    model's own code (model/block.py, model/attention.py); nothing here is the report's.
    """
    size, channels = (2 if bf16 else 4), config.hidden_size
    keys, heads = config.num_key_value_heads * config.head_dim, config.num_attention_heads
    if checkpointing == "full":
        return weight_size * channels
    if checkpointing == "selective":
        return (
            weight_size * channels
            + 4 * heads
            + size * (4 * channels + 2 * keys + 2 * config.intermediate_size)
        )
    normalised = (5 if bf16 and weight_size == 4 else 2) * size * channels
    attention = size * (3 * channels + 2 * keys) + 4 * heads + size * seq_len * dense_mask
    return (
        2 * weight_size * channels
        + 16
        + normalised
        + attention
        + 4 * size * config.intermediate_size
    )


def loss_bytes(
    config: ModelConfig, tokens: int, weight_size: int, *, bf16: bool = True, device: str = "cuda"
) -> int:
    """Bytes that the chunked cross-entropy works with at its worst moment;
    model/loss.py is the source.

    Its forward pass holds 4 V C (fp32 gradient of the head), a V C (a chunk's share of
    it), 2 V C (the head in bf16, under autocast), and per row of a chunk V (4 + 2 for
    bf16) of logits and a C of states; while the next chunk is made, the one before it
    still lives. Its backward pass holds the gradient twice, 8 V C, and 2 V C as bf16
    where the weights are. Both: 2 w C per token, the hidden states and their gradient.
    """
    size, table = (2 if bf16 else 4), config.vocab_size * config.hidden_size
    limit = max(1, CHUNK_BYTES[device] // (4 * config.vocab_size))
    first, second = min(limit, tokens), max(0, min(limit, tokens - limit))
    logits = config.vocab_size * (6 if bf16 else 4)
    autocast = bf16 and weight_size == 4
    share = max(
        size * table, first * config.hidden_size * (6 if autocast else size)
    )  # of the head's gradient, or of the states'
    chunk = first * (logits + size * config.hidden_size) + max(share, second * logits)
    backward = 8 * table + (2 * table if weight_size == 2 else 0)
    return 2 * weight_size * config.hidden_size * tokens + max(
        (2 * table if autocast else 0) + 4 * table + chunk, backward
    )


def state_bytes(
    config: ModelConfig, strategy: str, shards: int, *, bf16: bool = True, accumulates: bool = True
) -> tuple[float, float, float]:
    """Bytes per rank of weights, gradients and optimizer when most of each are there;
    `shards` is R, 1 for single and ddp.

    single, ddp: weights 4 N in fp32; gradients 4 N (ddp: as views of its buckets);
    AdamW 8 N, and 4 per tensor for its step count. zero1: weights a N, gathered for the
    step; gradients 4 N added up in fp32, or 4 N / R without accumulation; fp32 weights
    and moments 12 N / R, also a step count per tensor. fsdp, hybrid: 4 N / R, 4 N / R,
    8 N / R. A shard is an even part: padding is not counted. ZeRO's stages are
    Rajbhandari et al. 2020; the report used stage 1 with bf16 and fp32 reduction
    (confirmed).
    """
    count = config.num_parameters()
    in_block = 7 + 3 * config.use_qkv_bias + 2 * (1 + config.norm_bias)
    tensors = (
        (1 if config.tie_word_embeddings else 2)
        + config.num_hidden_layers * in_block
        + 1
        + config.final_norm_bias
    )
    if strategy in ("single", "ddp"):
        return 4 * count, 4 * count, 8 * count + 4 * tensors
    part = count / shards
    if strategy == "zero1":
        return (
            (2 if bf16 else 4) * count,
            4 * count if accumulates else 4 * part,
            12 * part + 4 * tensors,
        )
    return 4 * part, 4 * part, 8 * part + 4 * tensors


def memory(
    config: RunConfig,
    gpus: int,
    strategy: str,
    checkpointing: str = "none",
    *,
    dense_mask: bool = False,
) -> Memory:
    """Bytes per rank at the worst moment of a step. `dense_mask`: as on the CPU, where
    several documents in a row make a mask of T flags a token; on a GPU the mask is one
    of blocks, too small to count. With train.dtype = "float32" all of it is fp32.
    """
    step = (_ShardedStep if strategy in SHARDED else _Step)(
        config, gpus, strategy, checkpointing, dense_mask
    )
    blocks = (step.block(done) for done in range(config.model.num_hidden_layers))
    return max((step.loss(), *blocks, step.end()), key=lambda moment: moment.total)


def shard_ranks(config: RunConfig, gpus: int, strategy: str) -> int:
    """R, how many ranks share what is sharded."""
    node = config.parallel.shard_ranks or min(gpus, GPUS_PER_NODE)
    return {"single": 1, "ddp": 1, "hybrid": node}.get(strategy, gpus)


def root_and_block(config: ModelConfig) -> tuple[int, int]:
    """Parameters outside the blocks (embedding, head, final norm), and in one block."""
    table = config.vocab_size * config.hidden_size
    root = table * (1 if config.tie_word_embeddings else 2) + config.hidden_size * (
        1 + config.final_norm_bias
    )
    return root, (config.num_parameters() - root) // config.num_hidden_layers


class _Step:
    """The last micro-batch of a step under single and ddp, moment by moment; gradients
    of those before it, if any, are there already.
    """

    def __init__(
        self, config: RunConfig, gpus: int, strategy: str, checkpointing: str, dense_mask: bool
    ) -> None:
        model, length, self.bf16 = (
            config.model,
            config.data.seq_len,
            config.train.dtype != "float32",
        )
        self.model, self.strategy, self.checkpointing = model, strategy, checkpointing
        self.device = "cpu" if config.train.device == "cpu" else "cuda"
        self.size = 2 if self.bf16 else 4
        self.weight_size = self.size if strategy in SHARDED else 4
        self.tokens = config.train.micro_batch_size * length
        self.accumulates = config.train.global_batch_tokens > gpus * self.tokens
        self.shards = shard_ranks(config, gpus, strategy)
        states = state_bytes(
            model, strategy, self.shards, bf16=self.bf16, accumulates=self.accumulates
        )
        self.weights, self.gradients, self.optimizer = states
        self.held = self.gradients if self.accumulates or strategy == "ddp" else 0
        self.layers, self.table = model.num_hidden_layers, model.vocab_size * model.hidden_size
        self.root, self.in_block = root_and_block(model)
        per_token = partial(
            block_bytes,
            model,
            length,
            weight_size=self.weight_size,
            bf16=self.bf16,
            dense_mask=dense_mask,
        )
        self.whole, self.kept = (
            self.tokens * per_token("none"),
            self.tokens * per_token(checkpointing),
        )
        # The final norm's input and statistics, four rows of indices, the rotary angles
        # with cosines and sines, the mask.
        self.around = self.tokens * (
            self.weight_size * model.hidden_size
            + 8
            + 32
            + 12 * (model.rotary_dim // 2)
            + length * dense_mask
        )

    def loss(self) -> Memory:
        """All activations are kept, and what `loss_bytes` counts is there. Autocast's
        bf16 copies of the blocks' matrices still live.
        """
        working = loss_bytes(
            self.model, self.tokens, self.weight_size, bf16=self.bf16, device=self.device
        ) + self._copies(self.layers)
        return Memory(
            self.weights, self.held, self.optimizer, self.layers * self.kept + self.around, working
        )

    def block(self, done: int) -> Memory:
        """The backward pass of a block after that of `done` others.

        All that this block computes again is there, and 2 a I + w C per token, 2 C more
        under autocast, for gradients of activations. A bf16 copy lives until the
        backward pass of its block; under checkpointing only this block has any.
        """
        left, channels = self.layers - done, self.weight_size + (2 if self._autocast else 0)
        working = self.tokens * (
            2 * self.size * self.model.intermediate_size + channels * self.model.hidden_size
        )
        working += self._copies(left if self.checkpointing == "none" else 1)
        gradients = self.held or 4 * (self.table + done * self.in_block)
        return Memory(
            self.weights,
            gradients,
            self.optimizer,
            (left - 1) * self.kept + self.whole + self.around,
            working,
        )

    def end(self) -> Memory:
        """No activations of blocks are left, all gradients are there, and the
        embedding's, 4 V C, is on its way to an earlier one.
        """
        return Memory(
            self.weights,
            self.gradients,
            self.optimizer,
            self.around,
            4 * self.table if self.accumulates else 0,
        )

    @property
    def _autocast(self) -> bool:
        return self.bf16 and self.weight_size == 4

    def _copies(self, blocks: int) -> int:
        return 2 * blocks * self.in_block if self._autocast else 0


class _ShardedStep(_Step):
    """The same under zero1, fsdp and hybrid: FSDP2, which gathers and reduces the
    parameters of a block, or of all outside them, at once.

    A gathered block comes as one buffer and is then copied out of it. Gradients are
    made in a bytes and copied into a buffer of fp32 to be reduced, which lives until
    the next one's turn. zero1 adds them up in fp32 and gathers and reduces once a step.
    """

    def loss(self) -> Memory:
        """fsdp has gathered what is outside of the blocks, a each, and holds a buffer
        of one block: the last one's, then the one it fetches ahead. Without
        accumulation zero1 holds that buffer too.
        """
        moment = super().loss()
        gathered = (
            self.root + self.in_block
            if self.strategy != "zero1"
            else 0
            if self.accumulates
            else self.in_block
        )
        return replace(moment, working=moment.working + self.size * gathered)

    def block(self, done: int) -> Memory:
        """Beside the plain step's: gradients of the block and of the head, a each, and
        the buffer, 4 each, in which the block before is reduced. fsdp has gathered this
        block and the next. zero1 drops weights and 4-byte sums of a block as it is done
        with it.
        """
        moment, mine = super().block(done), self.size * self.in_block
        working = (
            moment.working + self.size * self.table + mine + (4 * self.in_block if done else 0)
        )
        reduced = 4 * done * self.in_block / self.shards
        if self.strategy == "zero1":
            sums = (
                4 * (self.model.num_parameters() - done * self.in_block) if self.accumulates else 0
            )
            return replace(
                moment,
                weights=self.weights - done * mine,
                gradients=sums + reduced,
                working=working,
            )
        working += self.size * self.root + mine * min(self.layers - done, 2)
        return replace(moment, gradients=self.held or reduced, working=working)

    def end(self) -> Memory:
        """Gradients outside of the blocks: first their weights are still gathered and
        the last block is being reduced; then they are copied to be reduced, 4 each, and
        the head's own stays until its part, 4 / R each, is there. With zero1's sums
        they are 4 each.
        """
        sums = self.strategy == "zero1" and self.accumulates
        made, part = (4 if sums else self.size), 4 * self.root / self.shards
        before = 2 * self.size * self.root + 4 * self.in_block + (4 * self.root if sums else 0)
        after = 4 * self.root + max(made * self.root, made * self.table + part)
        weights = 0 if self.strategy == "zero1" else self.weights
        gradients = (
            self.held
            if self.strategy != "zero1" and self.accumulates
            else 4 * self.layers * self.in_block / self.shards
        )
        return Memory(weights, gradients, self.optimizer, self.around, max(before, after))
