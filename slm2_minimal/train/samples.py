"""Short texts that a model in training writes: what its loss means, for a reader."""

from collections.abc import Callable, Iterator

import torch

from slm2_minimal.config import RunConfig
from slm2_minimal.inference.generate import stream
from slm2_minimal.inference.sampling import Sampling
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.tokenizer import Tokenizer


def sample_texts(
    model: StableLM2, tokenizer: Tokenizer, config: RunConfig, should_stop: Callable[[], bool]
) -> Iterator[str]:
    """Each of `train.prompts` with up to `train.sample_tokens` tokens behind it.

    All ranks draw the same together: a sharded model needs every one of them. None is
    drawn once `should_stop`, which is asked at every token, says so.
    """
    device = model.lm_head.weight.device
    room = config.model.max_position_embeddings - config.train.sample_tokens
    for seed, prompt in enumerate(config.train.prompts):
        ids = tokenizer.encode(prompt)[:room]
        tokens = torch.tensor([ids], device=device)
        sampling = Sampling(temperature=0.7, top_p=0.95, seed=seed)
        # Compiled blocks are for training: each length would be compiled anew.
        with torch.compiler.set_stance("force_eager"):
            stops = [tokenizer.eos_token_id]
            for drawn in stream(
                model, tokens, config.train.sample_tokens, sampling, stop_ids=stops
            ):
                ids.append(int(drawn[0]))
                if should_stop():
                    return
        yield tokenizer.decode(i for i in ids if i != tokenizer.eos_token_id)
