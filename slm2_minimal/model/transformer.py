"""The whole model: token embedding, blocks, a final norm, and an untied head (report
section 2).

Module names are Hugging Face's, so that the state dict is the released file's, key for
key. The model knows nothing of process groups or of training: whatever distributes it
is applied from outside.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from slm2_minimal.config import DataError, ModelConfig
from slm2_minimal.model import hub
from slm2_minimal.model.block import Block
from slm2_minimal.model.cache import KeyValueCache
from slm2_minimal.model.masks import Mask, cached_mask, packed_mask
from slm2_minimal.model.quantised import Quantisation, quantised_layers, replace_linears
from slm2_minimal.model.rope import rotary_angles


class Decoder(nn.Module):
    """Everything but the head; named `model` in the state dict."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # On meta there is nothing to draw, and `normal_` would import torch's compiler.
        table = torch.empty(config.vocab_size, config.hidden_size)
        values = table if table.is_meta else None
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=values)
        self.layers = nn.ModuleList(
            Block(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(
            config.hidden_size, eps=config.layer_norm_eps, bias=config.final_norm_bias
        )


class StableLM2(nn.Module):
    """Stable LM 2: a decoder-only transformer over token ids.

    Works under `torch.device("meta")`; call `init_weights()` after materialising.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.init_weights()

        # memory, FLOPs and the planner go by the config's count
        built, counted = sum(p.numel() for p in self.parameters()), config.num_parameters()
        if built != counted:
            raise RuntimeError(
                f"StableLM2 has {built:,} parameters, ModelConfig.num_parameters() counts"
                f" {counted:,}: change it, model/flops.py and launch/memory.py with the modules"
            )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal with std `initializer_range`; the two projections that write into the
        residual stream are scaled by 1 / sqrt(2 L).

        L layers add 2 L terms to the stream; with the scaling, what they add up to is
        the same at any depth.
        """
        for name, parameter in self.named_parameters():
            if not parameter.is_meta:
                self.init_weight(name, parameter, generator)

    def init_weight(
        self, name: str, tensor: Tensor, generator: torch.Generator | None = None
    ) -> None:
        """Fill `tensor` with the first values of the parameter `name`."""
        if "norm" in name:
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            tensor.zero_()
        else:
            std = self.config.initializer_range
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * self.config.num_hidden_layers)
            tensor.normal_(0.0, std, generator=generator)

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "B T"] | None = None,
        document_ids: Int[Tensor, "B T"] | None = None,
        *,
        cache: KeyValueCache | None = None,
        head: Callable[[Float[Tensor, "B T C"], nn.Module], Tensor] | None = None,
    ) -> Float[Tensor, "B T V"]:
        """Logits of the next token at every position.

        Args:
            position_ids: left out, they count from each row's first token; inside
            packed sequences they restart with every document.
            document_ids: tokens attend only to earlier tokens of the same id. None: the
            whole row is one document.
            cache: keys and values of the tokens before these; it is extended in place.
            Not together with document_ids.
            head: what is made of the final hidden states and the head, a module. The
            loss replaces it to avoid holding the logits; None is `lm_head(hidden)`.

        Raises:
            DataError: the sequence is longer than the context, or than the cache.
        """
        new = input_ids.shape[1]
        past = 0 if cache is None else cache.length
        starts = None if cache is None else cache.starts
        context = self.config.max_position_embeddings
        if past + new > context:
            raise DataError(
                f"input_ids = {past + new} tokens: longer than the context,"
                f" max_position_embeddings = {context}; shorten the input"
            )

        # who sees whom, and by how much each position is turned
        if document_ids is not None:
            assert cache is None, "a cache holds one document a row, not packed ones"
            mask: Mask = packed_mask(document_ids)
        else:
            mask = cached_mask(new, past, input_ids.device, starts)
        if position_ids is None:
            position_ids = torch.arange(past, past + new, device=input_ids.device)
            if starts is not None:
                position_ids = position_ids - starts[:, None]
        angles = rotary_angles(position_ids, self.config.rotary_dim, self.config.rope_theta)
        rotation = (angles.cos(), angles.sin())

        x = self.model.embed_tokens(input_ids)
        for block in self.model.layers:
            x = block(x, rotation, mask, cache)
        hidden = self.model.norm(x)
        return self.lm_head(hidden) if head is None else head(hidden, self.lm_head)

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | Path, dtype: torch.dtype | None = torch.float32
    ) -> "StableLM2":
        """Load a folder in Hugging Face's format (config.json and safetensors, sharded
        or not), or a Hub id; or a folder that `slm2 quantise` wrote.

        `dtype` None: in the folder's own 16 bits, mapped; fp32 where it has others.
        """
        folder = hub.resolve(path_or_repo_id)
        content = hub.read_quantisation(folder)
        settings = None if content is None else Quantisation.from_json(content, folder)
        with torch.device("meta"):
            model = cls(hub.read_config(folder, quantised=settings is not None))
            if settings is not None:
                replace_linears(model, settings)
        tied = model.config.tie_word_embeddings and settings is None
        model.load_state_dict(hub.read_weights(folder, model, dtype, tied=tied), assign=True)
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        return model

    def save_pretrained(self, path: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write config.json and safetensors that `transformers` loads, in shards of at
        most `max_shard_bytes`.
        """
        quantised = next((layer.settings for _, layer in quantised_layers(self)), None)
        content = None if quantised is None else quantised.to_json()
        hub.write(path, self.config, self.state_dict(), max_shard_bytes, content)
