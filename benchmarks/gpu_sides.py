"""The sides that gpu_step.py measures: one training step of the package, and of its
peers on the very same parameters and data.
"""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from slm2_minimal.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.distributed.device import autocast, synchronize
from slm2_minimal.distributed.parallel import build_on_meta
from slm2_minimal.distributed.world import World
from slm2_minimal.launch.memory import memory
from slm2_minimal.model.hub import write_config
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients
from slm2_minimal.train.step import accumulate_gradients

BF16 = torch.bfloat16
KINDS = ("whole", "packed")  # of rows: one document each, or several


@dataclass
class Side:
    """One way to make the step. `backward` leaves a micro-batch's gradients in
    `model`'s parameters and returns the loss.
    """

    name: str
    rows: str
    model: nn.Module
    backward: Callable[[], Tensor]
    planned: float | None = None  # bytes
    seconds: list[float] = field(default_factory=list)
    peak: float = 0.0  # bytes
    loss: float = 0.0
    gradient: Tensor | None = None  # of WITNESS


class Bench:
    """The weights, the data and the optimizer that all sides share."""

    def __init__(self, device: torch.device, model: ModelConfig, rows: int, length: int) -> None:
        self.device = device
        self.run = RunConfig(
            model=model,
            data=DataConfig(seq_len=length),
            train=TrainConfig(
                micro_batch_size=rows, global_batch_tokens=rows * length, dtype="bfloat16"
            ),
        )
        self.data = {kind: batch(kind, rows, length, model.vocab_size) for kind in KINDS}
        torch.manual_seed(0)
        with device:
            self.model = StableLM2(model)
        self.parameters = dict(self.model.named_parameters())
        self.optimizer = build_optimizer(self.model, OptimizerConfig())

    def ours(self, rows: str, compiled: bool, checkpointing: Any) -> Side:
        """The package's step, its model built as a run builds it."""
        run = replace(self.run, parallel=ParallelConfig(checkpointing=checkpointing))
        model = build_on_meta(run, World(self.device), BF16)
        adopt(model, self.parameters)
        if compiled:
            compile_each(model.model.layers, self.device)

        def backward() -> Tensor:
            return accumulate_gradients(model, [self.data[rows]], dtype=BF16)

        name = f"{named('slm2_minimal', compiled)}, checkpointing {checkpointing}"
        planned = memory(run, 1, "single", checkpointing).total
        return Side(name, rows, model, backward, planned)

    def transformers(self, kernel: str, compiled: bool) -> Side:
        """StableLmForCausalLM with its own loss, on our parameters: they have the same
        names.
        """
        from transformers import AutoModelForCausalLM, StableLmConfig

        config = StableLmConfig.from_dict(write_config(self.run.model))
        with self.device:  # not on meta: its rotary table is no parameter
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=kernel, dtype=torch.float32
            ).train()
        adopt(model, self.parameters)
        if compiled:
            compile_each(model.model.layers, self.device)

        def loss(data: Batch) -> Tensor:
            labels = {"labels": data.labels, "shift_labels": data.labels}
            return model(input_ids=data.input_ids, use_cache=False, **labels).loss

        name = named(f"transformers, {kernel}", compiled)
        return Side(name, "whole", model, self.backward_of(loss))

    def litgpt(self, compiled: bool) -> Side:
        """litgpt's GPT with this architecture and its own loss, on our parameters but
        for q, k and v, which it holds as one.
        """
        from litgpt import GPT, Config
        from litgpt.utils import chunked_cross_entropy

        ours = self.run.model
        config = Config(
            block_size=ours.max_position_embeddings,
            n_layer=ours.num_hidden_layers,
            n_embd=ours.hidden_size,
            n_head=ours.num_attention_heads,
            n_query_groups=ours.num_key_value_heads,
            intermediate_size=ours.intermediate_size,
            vocab_size=ours.vocab_size,
            padded_vocab_size=ours.vocab_size,
            rotary_percentage=ours.partial_rotary_factor,
            norm_eps=ours.layer_norm_eps,
            mlp_class_name="LLaMAMLP",
            parallel_residual=False,
            bias=False,
            attn_bias=True,
        )
        with self.device:
            model = GPT(config)
        names = {
            "lm_head": "lm_head",
            "transformer.wte": "model.embed_tokens",
            "transformer.ln_f": "model.norm",
        }
        for layer in range(ours.num_hidden_layers):
            theirs, here = f"transformer.h.{layer}.", f"model.layers.{layer}."
            names |= {
                theirs + "norm_1": here + "input_layernorm",
                theirs + "norm_2": here + "post_attention_layernorm",
            }
            names |= {
                theirs + "attn.proj": here + "self_attn.o_proj",
                theirs + "mlp.proj": here + "mlp.down_proj",
            }
            names |= {
                theirs + "mlp.fc_1": here + "mlp.gate_proj",
                theirs + "mlp.fc_2": here + "mlp.up_proj",
            }
        tensors = {}
        for name, parameter in model.named_parameters():
            module, kind = name.rsplit(".", 1)
            if module in names:
                tensors[name] = self.parameters[f"{names[module]}.{kind}"]
            else:
                here = f"model.layers.{module.split('.')[2]}.self_attn."
                with torch.no_grad():
                    parameter.copy_(
                        torch.cat([self.parameters[f"{here}{part}_proj.{kind}"] for part in "qkv"])
                    )
                self.optimizer.param_groups[0]["params"].append(parameter)
        adopt(model, tensors)
        if compiled:
            compile_each(model.transformer.h, self.device)

        def loss(data: Batch) -> Tensor:
            return chunked_cross_entropy(model(data.input_ids), data.labels)

        return Side(named("litgpt", compiled), "whole", model, self.backward_of(loss))

    def backward_of(self, loss: Callable[[Batch], Tensor]) -> Callable[[], Tensor]:
        """A peer's micro-batch, under the autocast that ours has."""

        def backward() -> Tensor:
            data = self.data["whole"].to(self.device)
            with autocast(self.device, BF16):
                value = loss(data)
            value.backward()
            return value.detach()

        return backward

    def step(self, side: Side) -> None:
        """One step, with its time and peak memory."""
        cuda = self.device.type == "cuda"
        own = sum(3 * parameter.nbytes for parameter in side.model.parameters())  # and two moments
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        others = torch.cuda.memory_allocated() - own if cuda else 0
        synchronize(self.device)
        start = time.perf_counter()
        side.backward()
        clip_gradients(side.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(self.device)
        side.seconds.append(time.perf_counter() - start)
        side.peak = max(side.peak, torch.cuda.max_memory_allocated() - others) if cuda else 0

    def free(self) -> None:
        """Give memory back to the GPU that the allocator keeps from one side to the
        next.
        """
        self.optimizer.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def named(side: str, compiled: bool) -> str:
    """A side's name with how its blocks are run."""
    return f"{side}, compiled" if compiled else side


def batch(kind: str, rows: int, length: int, vocabulary: int) -> Batch:
    """Random tokens, packed as training packs them: a document a row, or documents of
    an eighth of it on average.
    """
    generator = torch.Generator().manual_seed(0)
    lengths = [length - 1] * rows
    if kind == "packed":
        lengths = torch.randint(1, length // 4, (rows * 16,), generator=generator).tolist()
    documents = [torch.randint(1, vocabulary, (n,), generator=generator).numpy() for n in lengths]
    stream = TokenStream.from_documents(documents, eos=0)
    return Batch.stack([stream.sequence(row, length) for row in range(rows)])


def adopt(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Have `model` use these parameters in place of its own of the same names."""
    for name, parameter in parameters.items():
        module, kind = name.rsplit(".", 1)
        owner = model.get_submodule(module)
        assert getattr(owner, kind).shape == parameter.shape, name
        setattr(owner, kind, parameter)


def compile_each(blocks: Any, device: torch.device) -> None:
    """Compile block by block; on a CPU, where nothing is measured, only as far as the
    graph.
    """
    for block in blocks:
        block.compile(backend="inductor" if device.type == "cuda" else "aot_eager")
