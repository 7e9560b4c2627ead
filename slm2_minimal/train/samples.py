"""Short texts that a model in training writes: what its loss means, for a reader."""

from collections.abc import Iterator

import torch

from slm2_minimal.config import RunConfig
from slm2_minimal.inference.generate import generate
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import Tokenizer


def sample_texts(model: StableLM2, tokenizer: Tokenizer, config: RunConfig) -> Iterator[str]:
    """Each of `train.prompts` with up to `train.sample_tokens` tokens behind it.

    All ranks draw the same together: a sharded model needs every one of them.
    """
    device = model.lm_head.weight.device
    room = config.model.max_position_embeddings - config.train.sample_tokens
    for seed, prompt in enumerate(config.train.prompts):
        ids = tokenizer.encode(prompt)[:room]
        # Compiled blocks are for training: each length would be compiled anew.
        with torch.compiler.set_stance("force_eager"):
            drawn = generate(
                model,
                torch.tensor([ids], device=device),
                config.train.sample_tokens,
                temperature=0.7,
                top_p=0.95,
                seed=seed,
                stop_ids=[tokenizer.eos_token_id],
            )
        yield tokenizer.decode(i for i in drawn[0].tolist() if i != tokenizer.eos_token_id)
