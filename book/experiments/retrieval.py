"""Chapter 13's recorded runs: a toy trained on sequences of 128 and of 256 tokens, and
what it finds again in texts of 64 to 512.

    python book/experiments/retrieval.py [--steps 400] [--seeds 3]

The report leaves the comparison of two contexts open. All runs read equally many tokens
of the same stream of documents, cut every 128 or every 256: sentences of the embedded
corpus, with the same secret number told again and again. Only the digit of such a
statement is learned, and not of the first one in a document.

Beside the context two choices of the report are turned over: attention and positions
that restart with every document, and rotary embedding on a quarter of each head.

Each run is added to the record when it is done; a second call goes on behind them.
"""

import itertools
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slm2_minimal import ModelConfig, StableLM2, load_tokenizer
from slm2_minimal.config import IGNORE, DataError, OptimizerConfig
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.evaluate.retrieval import PHRASES, Settings, haystack, measure, score_probes
from slm2_minimal.model.loss import summed_cross_entropy
from slm2_minimal.teach import load_record, save_record
from slm2_minimal.train.optimizer import build_optimizer, clip_gradients
from slm2_minimal.train.step import update

from common import parse_options

OUT = Path(__file__).parents[1] / "recorded" / "retrieval.json"
CONTEXT = 128  # T
LENGTHS = (64, 128, 256, 512)  # of the texts, T/2 to 4 T
BATCH_TOKENS, PEAK_LR, WARMUP = 2048, 5e-3, 40
SHORTEST, LONGEST = 32, 512  # tokens of a document
MOST_BETWEEN = 4  # sentences between two statements, on average
SAMPLES = 20  # of a cell

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": max(LENGTHS),
    "initializer_range": 0.113,  # 0.02 x sqrt(2048 / 64), as in the preset
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as the report": {},
    "all turned": {"turned": 1.0},
    "no restart": {"restart": False},
}


def document(rng: random.Random, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """The ids of a text with a number in it, and which of them are to be learned."""
    length = round(2 ** rng.uniform(np.log2(SHORTEST), np.log2(LONGEST)))
    between = 2 ** rng.uniform(0, np.log2(MOST_BETWEEN))
    statement = tokenizer.encode(f" {PHRASES['en'].passkey} {rng.randrange(1, 10)}.")
    told = False
    ids: list[int] = []
    learned: list[bool] = []
    for sentence in haystack("corpus", "en", rng):
        if rng.random() < 1 / between:
            ids += statement
            learned += [False] * (len(statement) - 3) + [told, told, False]  # space and digit
            told = True
        words = tokenizer.encode(f" {sentence}")
        ids += words
        learned += [False] * len(words)
        if len(ids) >= length:
            break
    return ids[:length], learned[:length]


def stream_of_documents(tokens: int, seed: int) -> tuple[TokenStream, np.ndarray]:
    """At least so many tokens, and which of them are to be learned: (N,) bool. Other
    numbers than those of the test, whose random numbers come from another string.
    """
    tokenizer = load_tokenizer("tiny")
    rng = random.Random(f"training/{seed}")
    documents: list[list[int]] = []
    learned: list[bool] = []
    while len(learned) <= tokens:
        ids, of_these = document(rng, tokenizer)
        documents.append(ids)
        learned += [*of_these, False]  # the end of text
    return TokenStream.from_documents(documents, tokenizer.eos_token_id), np.array(learned)


def train(context: int, steps: int, seed: int, turned: float, restart: bool) -> StableLM2:
    """A toy trained on sequences of `context` tokens."""
    config = ModelConfig.preset("tiny").replace(**SIZES, partial_rotary_factor=turned)
    model = StableLM2(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    optimizer = build_optimizer(model, OptimizerConfig(beta2=0.95))
    stream, learned = stream_of_documents(steps * BATCH_TOKENS, seed)
    rows = BATCH_TOKENS // context
    order = list(range(steps * rows))
    random.Random(f"order/{seed}").shuffle(order)

    for step in range(steps):
        chosen = order[step * rows : (step + 1) * rows]
        batch = Batch.stack([stream.sequence(index, context) for index in chosen])
        for labels, index in zip(batch.labels, chosen, strict=True):
            begin = index * context + 1
            labels[~torch.from_numpy(learned[begin : begin + context])] = IGNORE
        where = (batch.position_ids, batch.attention_ids) if restart else (None, None)
        head = partial(summed_cross_entropy, labels=batch.labels)
        loss = model(batch.input_ids, *where, head=head) / max(1, batch.valid_tokens)
        loss.backward()
        clip_gradients(model.parameters(), 1.0)
        update(optimizer, PEAK_LR * min((step + 1) / WARMUP, 1 - step / steps))
    return model.eval()


def found(model: StableLM2) -> dict[str, Any]:
    """Of each length, the share of exact answers by depth, and the mean margin."""
    settings = Settings(("passkey",), ("en",), LENGTHS, samples=SAMPLES, digits=1)
    tokenizer = load_tokenizer("tiny")
    exact, margin = {}, {}
    for _, cells in measure(partial(score_probes, model, tokenizer), tokenizer, settings):
        length = str(cells[0].length)
        exact[length] = [round(float(np.mean(cell.exact)), 4) for cell in cells]
        margin[length] = round(float(np.mean([cell.margin for cell in cells])), 3)
    return {"exact": exact, "margin": margin}


def main() -> None:
    """Run what is not in the record yet."""
    options = parse_options(__doc__, steps=400, seeds=3)
    command = f"python book/experiments/retrieval.py --steps {options.steps}"
    command += f" --seeds {options.seeds}"
    results: dict[str, Any] = {
        "steps": options.steps,
        "tokens_per_step": BATCH_TOKENS,
        "lengths": LENGTHS,
        "samples": SAMPLES,
        "runs": {},
    }
    seconds = 0.0
    try:
        record = load_record(OUT)
        if record["command"] == command:
            results, seconds = record["results"], record["seconds"]
    except DataError:
        pass  # the first run

    runs = itertools.product(range(options.seeds), VARIANTS, (CONTEXT, 2 * CONTEXT))
    for seed, name, context in runs:
        key = f"{name}, {context}, seed {seed}"
        if key in results["runs"]:
            continue
        started = time.process_time()
        model = train(
            context, options.steps, seed, **{"turned": 0.25, "restart": True} | VARIANTS[name]
        )
        results["runs"][key] = found(model)
        seconds += time.process_time() - started
        save_record(OUT, command, results, seconds)
        print(key, results["runs"][key]["exact"], f"{seconds:.0f} s in all", flush=True)


if __name__ == "__main__":
    main()
