"""Bytes of live tensors on one rank of a training step, by arithmetic.

The worst of a step's moments counts: the loss, with all activations kept; the backward
pass of each block; its end, at the embedding. The planner sets it against a GPU's
memory. Tensor parallelism is left out, and so is what an allocator adds.
"""

from dataclasses import dataclass
from typing import Any

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
    working: float  # all else: the loss, a block's backward pass, copies, what is gathered

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
    """Bytes per token that one block's forward pass keeps for its backward pass.

    `weight_size` is the bytes of a weight as the forward pass finds it: 4 under single
    and ddp, where autocast makes bf16 of it, and an activation's under zero1, fsdp and
    hybrid.

    From model/block.py and model/attention.py. CUDA is meant; the tests measure on the
    CPU, whose kernels keep the same tensors but for two. CUDA's flash kernel writes its
    output in o_proj's order, so its copy is counted too much. The compiled kernel for
    packed documents runs again under selective checkpointing, so its output is, too.
    """
    size = 2 if bf16 else 4
    channels, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    stream = weight_size * channels  # the residual stream
    log_sum_exp = 4 * config.num_attention_heads  # of attention, which stores no scores

    # full: the input alone
    if checkpointing == "full":
        return stream

    # selective: also q, k, v, the output of attention, of o_proj, gate, up, down_proj
    if checkpointing == "selective":
        return stream + log_sum_exp + size * (4 * channels + 2 * keys + 2 * inner)

    # none: under autocast, norms give fp32 and each of five projections keeps its cast
    copies = 5 if bf16 and weight_size == 4 else 2
    norms = 2 * stream + 16 + copies * size * channels  # inputs, statistics, outputs
    attention = size * (3 * channels + 2 * keys)  # q, k, v, the output, a copy for o_proj
    mask = size * seq_len if dense_mask else 0  # SDPA makes a number of every flag
    mlp = 4 * size * inner  # gate, silu, up, their product
    return norms + attention + log_sum_exp + mask + mlp


def loss_bytes(
    config: ModelConfig, tokens: int, weight_size: int, *, bf16: bool = True, device: str = "cuda"
) -> int:
    """Bytes that the chunked cross-entropy of model/loss.py works with at its worst."""
    size = 2 if bf16 else 4
    autocast = bf16 and weight_size == 4
    channels, table = config.hidden_size, config.vocab_size * config.hidden_size

    # Tokens in a chunk, and in the next one: while it is made, the first still lives
    limit = max(1, CHUNK_BYTES[device] // (4 * config.vocab_size))
    first = min(limit, tokens)
    second = max(0, min(limit, tokens - limit))

    # Forward: the head's copy and gradient, a chunk, and what is made of it
    logits = config.vocab_size * (6 if bf16 else 4)  # of a token, in fp32 and bf16
    chunk = first * (logits + size * channels)
    head_share = size * table
    hidden_share = first * channels * (6 if autocast else size)
    head_copy = 2 * table if autocast else 0
    forward = head_copy + 4 * table + chunk + max(head_share, hidden_share, second * logits)

    # Backward: the head's gradient twice, and once more in bf16 where the weights are
    backward = 8 * table + (2 * table if weight_size == 2 else 0)
    hidden = 2 * weight_size * channels * tokens  # the states and their gradient
    return hidden + max(forward, backward)


def state_bytes(
    config: ModelConfig, strategy: str, shards: int, *, bf16: bool = True, accumulates: bool = True
) -> tuple[float, float, float]:
    """(weights, gradients, optimizer) in bytes per rank, when most of each are there.

    `shards` ranks share what is sharded; padding is not counted. zero1's shards of fp32
    weights count as the optimizer's. ZeRO's stages are Rajbhandari et al. 2020; the
    report used stage 1 with bf16 and fp32 reduction (confirmed).
    """
    # AdamW counts its steps for every tensor
    count = config.num_parameters()
    per_block = 7 + 3 * config.use_qkv_bias + 2 * (1 + config.norm_bias)
    outside = (1 if config.tie_word_embeddings else 2) + 1 + config.final_norm_bias
    step_counts = 4 * (outside + config.num_hidden_layers * per_block)

    if strategy in ("single", "ddp"):
        return 4 * count, 4 * count, 8 * count + step_counts
    part = count / shards
    if strategy == "zero1":
        weights = (2 if bf16 else 4) * count  # gathered for as long as the step lasts
        gradients = 4 * count if accumulates else 4 * part
        return weights, gradients, 12 * part + step_counts
    return 4 * part, 4 * part, 8 * part + step_counts


def memory(
    config: RunConfig,
    gpus: int,
    strategy: str,
    checkpointing: str = "none",
    *,
    dense_mask: bool = False,
) -> Memory:
    """Bytes per rank at the worst moment of a step.

    `dense_mask`: T flags a token, as on the CPU for several documents in a sequence; on
    a GPU the mask is one of blocks, too small to count.
    """
    step = _Step(config, gpus, strategy, checkpointing, dense_mask)
    last = step.layers - 1
    # Between the second and the last but one, bytes grow or shrink evenly
    blocks = sorted({0, min(1, last), max(0, last - 1), last})
    moments = [step.at_loss(), *map(step.in_backward, blocks), step.at_end()]
    return max(moments, key=lambda moment: moment.total)


def shard_ranks(config: RunConfig, gpus: int, strategy: str) -> int:
    """How many ranks share what is sharded."""
    if strategy in ("single", "ddp"):
        return 1
    if strategy == "hybrid":
        return config.parallel.shard_ranks or min(gpus, GPUS_PER_NODE)
    return gpus


def root_and_block(config: ModelConfig) -> tuple[int, int]:
    """Parameters outside the blocks (embedding, head, final norm), and in one block."""
    tables = 1 if config.tie_word_embeddings else 2
    norm = config.hidden_size * (1 + config.final_norm_bias)
    root = tables * config.vocab_size * config.hidden_size + norm
    return root, (config.num_parameters() - root) // config.num_hidden_layers


class _Step:
    """The last micro-batch of a step, moment by moment.

    FSDP2 gathers and reduces the parameters of a block, or of all outside them, at
    once. Weights are gathered into a buffer and copied out of it. Gradients are made in
    an activation's size and copied into a buffer of fp32 to be reduced, which lives
    until the next one's turn. zero1 gathers and reduces once a step, adds gradients up
    in fp32, and drops weights and sums of a block when it is done with it.
    """

    def __init__(
        self, config: RunConfig, gpus: int, strategy: str, checkpointing: str, dense_mask: bool
    ) -> None:
        model, seq_len = config.model, config.data.seq_len
        self.model, self.checkpointing = model, checkpointing
        self.device = "cpu" if config.train.device == "cpu" else "cuda"
        self.is_zero1 = strategy == "zero1"
        self.is_sharded = strategy in SHARDED

        # Bytes of a number
        self.bf16 = config.train.dtype != "float32"
        self.size = 2 if self.bf16 else 4
        self.weight_size = self.size if self.is_sharded else 4
        self.autocast = self.bf16 and self.weight_size == 4

        # Numbers of parameters
        self.layers = model.num_hidden_layers
        self.table = model.vocab_size * model.hidden_size
        self.root, self.in_block = root_and_block(model)

        # States; gradients of earlier micro-batches are there during the forward pass
        self.tokens = config.train.micro_batch_size * seq_len
        self.accumulates = config.train.global_batch_tokens > gpus * self.tokens
        self.shards = shard_ranks(config, gpus, strategy)
        self.weights, self.gradients, self.optimizer = state_bytes(
            model, strategy, self.shards, bf16=self.bf16, accumulates=self.accumulates
        )
        self.held = self.gradients if self.accumulates or strategy == "ddp" else 0

        # Activations of a block: all of them, and those that are kept
        sizes: dict[str, Any] = {
            "weight_size": self.weight_size,
            "bf16": self.bf16,
            "dense_mask": dense_mask,
        }
        self.whole_block = self.tokens * block_bytes(model, seq_len, "none", **sizes)
        self.kept_block = self.tokens * block_bytes(model, seq_len, checkpointing, **sizes)

        # Outside: the final norm's input and statistics, four tensors of indices, the
        # rotary angles with cosines and sines, the mask
        final_norm = self.weight_size * model.hidden_size + 8
        rotary = 12 * (model.rotary_dim // 2)
        mask = seq_len if dense_mask else 0
        self.outside = self.tokens * (final_norm + 32 + rotary + mask)

    def at_loss(self) -> Memory:
        """All activations are kept, and autocast's copies of the blocks' matrices."""
        activations = self.layers * self.kept_block + self.outside
        working: float = self.bf16_copies(self.layers)
        working += loss_bytes(
            self.model, self.tokens, self.weight_size, bf16=self.bf16, device=self.device
        )
        # A block's buffer, which zero1 has if it gathered in this pass; and the outside
        if self.is_sharded and not (self.is_zero1 and self.accumulates):
            working += self.size * self.in_block
        if self.is_sharded and not self.is_zero1:
            working += self.size * self.root
        return Memory(self.weights, self.held, self.optimizer, activations, working)

    def in_backward(self, finished: int) -> Memory:
        """The backward pass of a block after that of `finished` others."""
        left = self.layers - finished
        activations = (left - 1) * self.kept_block + self.whole_block + self.outside

        # Gradients of activations; a bf16 copy lives until its block is done, and under
        # checkpointing only this block has any
        channel_size = self.weight_size + (2 if self.autocast else 0)
        mlp = 2 * self.size * self.model.intermediate_size
        working: float = self.tokens * (mlp + channel_size * self.model.hidden_size)
        working += self.bf16_copies(left if self.checkpointing == "none" else 1)
        if not self.is_sharded:
            gradients = self.held or 4 * (self.table + finished * self.in_block)
            return Memory(self.weights, gradients, self.optimizer, activations, working)

        # Gradients of head and block as made, and the buffer of the block before
        working += self.size * (self.table + self.in_block) + (4 * self.in_block if finished else 0)
        reduced = 4 * finished * self.in_block / self.shards
        if self.is_zero1:
            weights = self.weights - finished * self.size * self.in_block
            unfinished = self.model.num_parameters() - finished * self.in_block
            gradients = reduced + (4 * unfinished if self.accumulates else 0)
            return Memory(weights, gradients, self.optimizer, activations, working)

        # What is outside, this block and the next are gathered
        working += self.size * (self.root + min(left, 2) * self.in_block)
        return Memory(self.weights, self.held or reduced, self.optimizer, activations, working)

    def at_end(self) -> Memory:
        """All gradients are there; those outside of the blocks come last."""
        # The embedding's is on its way to an earlier one
        if not self.is_sharded:
            working: float = 4 * self.table if self.accumulates else 0
            return Memory(self.weights, self.gradients, self.optimizer, self.outside, working)

        # The worse of two moments. First the weights outside are still gathered and the
        # last block is being reduced. Then their gradients, under zero1 the sums, are
        # copied into the buffer, and the head's own stays until its part is there.
        has_sums = self.is_zero1 and self.accumulates
        gradient_size = 4 if has_sums else self.size
        first = 2 * self.size * self.root + 4 * self.in_block + (4 * self.root if has_sums else 0)
        head_and_part = gradient_size * self.table + 4 * self.root / self.shards
        second = 4 * self.root + max(gradient_size * self.root, head_and_part)

        reduced = 4 * self.layers * self.in_block / self.shards
        working = max(first, second)
        if self.is_zero1:
            return Memory(0, reduced, self.optimizer, self.outside, working)
        return Memory(self.weights, self.held or reduced, self.optimizer, self.outside, working)

    def bf16_copies(self, blocks: int) -> int:
        """Autocast's, of the weights of so many blocks."""
        return 2 * blocks * self.in_block if self.autocast else 0
