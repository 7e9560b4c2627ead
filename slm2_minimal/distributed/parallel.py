"""A model laid over the processes of a run, from outside (report section 2).

The model's own files know no process groups. The strategies:

- single: one process. ddp: fp32 weights on every rank under autocast.
- zero1, the report's: bf16 weights on every rank for as long as a step lasts; gradients
  added up and reduced in fp32 once a step; fp32 weights and moments in shards.
- fsdp: a block's weights are gathered when it is needed, gradients reduced after every
  micro-batch. hybrid: fsdp among `shard_ranks` ranks, repeated.

The last three are torch's FSDP2 with other moments of gathering and reducing; they keep
parameters as DTensors. `tensor_parallel` ranks each have a slice of every matrix of the
blocks. What is not sliced (embedding, norms, head) is reduced by each column of ranks
for itself, and may differ among them by rounding. The loss is divided by the global
count of valid tokens before its backward pass, so gradients are summed, never averaged.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from slm2_minimal.config import SHARDED, ConfigError, ParallelConfig, RunConfig
from slm2_minimal.distributed.world import World
from slm2_minimal.model.transformer import StableLM2

# What selective checkpointing keeps: the outputs of matrix products and of attention.
# All else is cheap to compute again.
KEPT_OPS = (
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
)
# How tensor parallelism slices the matrices of a block: by outputs, then by inputs.
TENSOR_PLAN = {
    "self_attn.q_proj": ColwiseParallel(),
    "self_attn.k_proj": ColwiseParallel(),
    "self_attn.v_proj": ColwiseParallel(),
    "self_attn.o_proj": RowwiseParallel(),
    "mlp.gate_proj": ColwiseParallel(),
    "mlp.up_proj": ColwiseParallel(),
    "mlp.down_proj": RowwiseParallel(),
}


@dataclass(frozen=True)
class Replica:
    """This process's part of a model, and of every global batch."""

    strategy: str
    model: StableLM2  # its parameters are what is optimised and saved
    forward: nn.Module  # what is called: the model, or DDP around it
    autocast_dtype: torch.dtype  # fp32 where weights are gathered in bf16 already
    data_rank: int
    data_size: int
    copies: int = 1  # ranks that read the same rows: those of tensor parallelism

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around a micro-batch's passes: what can wait for the step's last one does."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
            return
        if isinstance(self.model, FSDPModule):
            if self.strategy == "zero1":
                self.model.set_requires_gradient_sync(last)
                self.model.set_reshard_after_backward(last)
            elif self.strategy == "hybrid":
                self.model.set_requires_all_reduce(last)
        yield

    def reshard(self) -> None:
        """Drop gathered weights, before saving or loading: the fp32 shards remain."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def parallelize(config: RunConfig, world: World, dtype: torch.dtype) -> Replica:
    """Build the run's model on `world`, initialised from `train.seed`.

    The weights are the same whatever the strategy and the number of ranks. Matrix
    products run in `dtype`. Raises ConfigError as `resolve_strategy`.
    """
    strategy = resolve_strategy(config, world.size, launched=world.group is not None)

    # Memory, then weights
    model = build_on_meta(config, world, dtype)
    model.to_empty(device=world.device)
    if config.model.tie_word_embeddings:  # to_empty makes two of one
        model.lm_head.weight = model.model.embed_tokens.weight
    init_weights(model, config.train.seed)

    forward: nn.Module = model
    if strategy == "ddp":
        forward = DistributedDataParallel(model, gradient_as_bucket_view=True)
        forward.register_comm_hook(None, _sum_bucket)
    tensor_ranks = config.parallel.tensor_parallel
    data_rank, data_size = world.rank // tensor_ranks, world.size // tensor_ranks
    autocast_dtype = torch.float32 if strategy in SHARDED else dtype
    return Replica(
        strategy, model, forward, autocast_dtype, data_rank, data_size, copies=tensor_ranks
    )


def build_on_meta(config: RunConfig, world: World, dtype: torch.dtype) -> StableLM2:
    """The model on the meta device, with all applied that changes it.

    It has no memory yet, but its parameters have their local shapes. The order matters:
    tensor parallelism, checkpointing of activations, compilation per block, sharding.
    Memory, weights, the optimizer and a checkpoint come after.
    """
    parallel = config.parallel
    strategy = resolve_strategy(config, world.size)
    mesh = _mesh(parallel, strategy, world) if strategy in SHARDED else None
    with torch.device("meta"):
        model = StableLM2(config.model)
    for block in model.model.layers:
        if parallel.tensor_parallel > 1:
            assert mesh is not None, "the configuration has refused other strategies"
            parallelize_module(block, mesh["tensor"], TENSOR_PLAN)
        if parallel.checkpointing != "none":
            checkpoint_activations(block, parallel.checkpointing)
        if parallel.compile:
            block.compile()
    if mesh is not None:
        data_mesh = mesh["shard"] if parallel.tensor_parallel > 1 else mesh
        shard_model(model, data_mesh, strategy, dtype)
    return model


def resolve_strategy(config: RunConfig, processes: int, *, launched: bool = True) -> str:
    """The strategy, `auto` decided.

    `launched` says that a launcher such as torchrun starts the processes: only then do
    they find each other. Raises ConfigError for a strategy that does not fit.
    """
    strategy = config.parallel.strategy
    if strategy == "auto":
        strategy = "single" if processes == 1 else "zero1"
    if strategy == "single" and processes > 1:
        raise ConfigError(
            f"parallel.strategy = 'single': is for one process, not {processes}; use ddp, zero1,"
            " fsdp or hybrid"
        )
    if strategy in SHARDED and config.model.tie_word_embeddings:
        raise ConfigError(
            f"model.tie_word_embeddings = true: cannot be sharded; use ddp instead of {strategy}"
        )
    if strategy != "single" and not launched:
        raise ConfigError(
            f"parallel.strategy = {strategy!r}: this is one process by itself; start it with"
            " torchrun --nproc-per-node N -m slm2_minimal train CONFIG, or use single"
        )
    return strategy


def _mesh(config: ParallelConfig, strategy: str, world: World) -> DeviceMesh:
    """The ranks as (repeat, shard), (shard, tensor) or (shard,), by what they share."""
    if strategy == "hybrid":
        inner = config.shard_ranks or world.local_size
        return world.mesh((world.size // inner, inner), ("repeat", "shard"))
    inner = config.tensor_parallel
    if inner > 1:
        return world.mesh((world.size // inner, inner), ("shard", "tensor"))
    return world.mesh((world.size,), ("shard",))


def shard_model(model: StableLM2, mesh: DeviceMesh, strategy: str, dtype: torch.dtype) -> None:
    """FSDP2 on every block, then on what is outside of them.

    The outside (embedding, final norm, head) stays gathered between the forward and the
    backward pass; under zero1 the blocks do, too.
    """
    # Inputs are not cast: the rotary angles must stay fp32.
    policy = MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    gather_again = strategy != "zero1"
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=gather_again)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)

    # Sums of gradients, not means
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def checkpoint_activations(block: nn.Module, kind: str) -> None:
    """Have `block` keep little for its backward pass, and compute the rest again.

    full: it keeps its input. selective: also the outputs of KEPT_OPS.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    block.forward = partial(checkpoint, block.forward, **options)  # type: ignore[method-assign]


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in KEPT_OPS else CheckpointPolicy.PREFER_RECOMPUTE


def _sum_bucket(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """The sum of a bucket of gradients over the ranks; DDP's own hook averages."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


@torch.no_grad()
def init_weights(model: StableLM2, seed: int) -> None:
    """Draw every tensor whole, in the model's order, and keep this rank's part.

    So every strategy starts from the same weights. Takes the host memory of the largest
    tensor in fp32, 0.8 GB for the 1.6B, and no communication.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        whole = torch.empty(parameter.shape)
        model.init_weight(name, whole, generator)
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            part = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            parameter.to_local().copy_(part.to_local())
        else:
            parameter.copy_(whole)
