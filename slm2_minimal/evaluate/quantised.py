"""What fewer bits cost: a quantised model beside its original.

Both read text of every language that nobody calibrated on, the embedded corpus's
held-out part. The divergence and the share of equal top tokens are of the same
positions as the losses.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from slm2_minimal.config import IGNORE, DataError
from slm2_minimal.data.loader import Batch
from slm2_minimal.data.packing import TokenStream
from slm2_minimal.evaluate.bits import bits_per_byte, scored_bytes
from slm2_minimal.model.quantised import Quantisation, quantised_layers
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation, nfc
from slm2_minimal.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
HELD_OUT_PERCENT = 10  # of the embedded corpus, the part that the tiny preset holds out
SCORED_TOKENS = 4096  # of a language, at most
CALIBRATION_TOKENS, FEWEST_TOKENS = 32_768, 1024
SEQ_LEN = 512  # or the model's context, where that is shorter
BATCH_SIZE, CHUNK = 4, 128  # sequences; tokens whose logits are held at a time
ROWS = 4096  # of a matrix that are compared at a time
SECONDS = 5.0  # between two lines of progress


@dataclass(frozen=True)
class LayerCost:
    """One matrix: its bytes before (in bf16) and after, and |W - Q| / |W|."""

    name: str
    bytes_16_bits: int
    bytes: int
    relative_error: float


@dataclass(frozen=True)
class TextCost:
    """One language: nats per token and bits per byte of both models, the divergence
    KL(original || quantised) in nats per token, and how often both have the same
    likeliest token.
    """

    tokens: int
    loss_before: float
    loss: float
    bits_per_byte_before: float
    bits_per_byte: float
    divergence: float
    same_top_token: float


@dataclass(frozen=True)
class Report:
    """What a quantisation did, by layer and by language."""

    settings: Quantisation
    layers: list[LayerCost]
    texts: dict[str, TextCost]

    def to_json(self) -> dict[str, Any]:
        """What a JSON file holds."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """A table for a terminal: kinds of layers, then languages."""
        kinds: dict[str, list[LayerCost]] = defaultdict(list)
        for layer in self.layers:
            kinds[layer.name.rpartition(".")[2]].append(layer)
        yield f"{'layer':<10} {'number':>6} {'MB before':>10} {'MB':>9} {'worst error':>12}"
        for kind, layers in kinds.items():
            before = sum(layer.bytes_16_bits for layer in layers) / 1e6
            after = sum(layer.bytes for layer in layers) / 1e6
            worst = max(layer.relative_error for layer in layers)
            yield f"{kind:<10} {len(layers):>6} {before:>10.2f} {after:>9.2f} {worst:>12.2%}"

        yield f"{'text':<10} {'tokens':>6} {'loss before':>11} {'loss':>8} {'change':>8}" + (
            f" {'bits/byte':>9} {'KL':>8} {'same top':>8}"
        )
        for name, text in self.texts.items():
            yield (
                f"{name:<10} {text.tokens:>6} {text.loss_before:>11.4f} {text.loss:>8.4f}"
                f" {text.loss / text.loss_before - 1:>+8.2%} {text.bits_per_byte:>9.4f}"
                f" {text.divergence:>8.5f} {text.same_top_token:>8.1%}"
            )


def calibration(texts: Sequence[str], tokenizer: Tokenizer, context: int) -> tuple[Tensor, ...]:
    """Ids, positions and document ids of packed sequences, spread evenly over the
    texts. Raises DataError for less than FEWEST_TOKENS.
    """
    documents = [tokenizer.encode(text) for text in texts]
    stream = TokenStream.from_documents(documents, tokenizer.eos_token_id)
    if stream.num_tokens < FEWEST_TOKENS:
        raise DataError(
            f"calibrate = {stream.num_tokens} tokens: too few to tell what a layer reads; give a"
            f" text of at least {FEWEST_TOKENS:,}"
        )
    seq_len = min(SEQ_LEN, context)
    available = stream.num_sequences(seq_len)
    count = min(available, CALIBRATION_TOKENS // seq_len)
    chosen = [stream.sequence(i * available // count, seq_len) for i in range(count)]
    batch = Batch.stack(chosen)
    parts = (batch.input_ids, batch.position_ids, batch.attention_ids)
    return tuple(part for part in parts if part is not None)


def held_out(calibrated: Sequence[str] = ()) -> dict[str, list[str]]:
    """Texts of every language of the embedded corpus that are not trained on by the
    tiny preset, and not among those calibrated on.

    Raises:
        DataError: all of them were.
    """
    seen = set(calibrated)
    texts: dict[str, list[str]] = defaultdict(list)
    for document in load_corpus():
        if is_validation(document.id, HELD_OUT_PERCENT) and document.text not in seen:
            texts[document.language].append(nfc(document.text))
    if not texts:
        raise DataError(
            "calibrate: holds all of the text that the models are compared on; give another text"
        )
    return dict(texts)


def compare(
    original: StableLM2,
    quantised: StableLM2,
    texts: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer,
) -> Report:
    """The whole report."""
    settings = next(layer.settings for _, layer in quantised_layers(quantised))
    layers = layer_costs(original, quantised)
    return Report(settings, layers, text_costs(original, quantised, texts, tokenizer))


@torch.no_grad()
def layer_costs(original: StableLM2, quantised: StableLM2) -> list[LayerCost]:
    """Of every quantised layer."""
    linears = dict(original.named_modules())
    costs = []
    for name, layer in quantised_layers(quantised):
        before = linears[name].weight
        assert isinstance(before, Tensor)
        norms = torch.zeros(2, dtype=torch.float64)  # squared: of the error, of the weights
        for start in range(0, len(before), ROWS):
            rows = before[start : start + ROWS].float()
            lost = rows - layer.weights(start, start + len(rows))
            norms += torch.stack([lost.norm(), rows.norm()]).double() ** 2

        error = (norms[0] / norms[1].clamp(min=1e-60)).sqrt().item()
        numbers = [layer.codes, layer.scale, layer.offset]
        size = sum(part.nbytes for part in numbers if part is not None)
        costs.append(LayerCost(name, 2 * before.numel(), size, error))
    return costs


@torch.no_grad()
def text_costs(
    original: StableLM2,
    quantised: StableLM2,
    texts: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer,
) -> dict[str, TextCost]:
    """Of every language, on its first texts up to SCORED_TOKENS."""
    costs = {}
    shown = time.monotonic()
    for name, own in texts.items():
        documents: list[list[int]] = []
        size = 0
        for text in own:
            ids = tokenizer.encode(text)
            if documents and sum(map(len, documents)) + len(ids) > SCORED_TOKENS:
                break
            documents.append(ids)
            size += scored_bytes(tokenizer, ids)
        stream = TokenStream.from_documents(documents, tokenizer.eos_token_id)
        costs[name] = _text_cost(original, quantised, stream, size)
        if time.monotonic() - shown > SECONDS:
            logger.info("quantise | %d of %d kinds of text compared", len(costs), len(texts))
            shown = time.monotonic()
    return costs


def _text_cost(
    original: StableLM2, quantised: StableLM2, stream: TokenStream, size: int
) -> TextCost:
    """Of a stream whose scored tokens are `size` bytes of text."""
    seq_len = min(SEQ_LEN, original.config.max_position_embeddings)
    sequences = [stream.sequence(i, seq_len) for i in range(stream.num_sequences(seq_len))]
    sums = torch.zeros(4, dtype=torch.float64)
    tokens = 0
    for start in range(0, len(sequences), BATCH_SIZE):
        batch = Batch.stack(sequences[start : start + BATCH_SIZE])
        valid = batch.labels != IGNORE
        states = [
            model(batch.input_ids, batch.position_ids, batch.attention_ids, head=_states)[valid]
            for model in (original, quantised)
        ]
        labels = batch.labels[valid]
        tokens += len(labels)
        for chunk in torch.arange(len(labels)).split(CHUNK):
            before = original.lm_head(states[0][chunk]).float().log_softmax(-1)
            after = quantised.lm_head(states[1][chunk]).float().log_softmax(-1)
            sums += _sums(before, after, labels[chunk])

    loss_before, loss, divergence, same = (sums / max(tokens, 1)).tolist()
    bits_before, bits = (bits_per_byte(nats, size) for nats in sums[:2].tolist())
    return TextCost(tokens, loss_before, loss, bits_before, bits, divergence, same)


def _states(hidden: Tensor, head: nn.Module) -> Tensor:
    return hidden


def _sums(
    before: Float[Tensor, "T V"], after: Float[Tensor, "T V"], labels: Tensor
) -> Float[Tensor, "4"]:
    """Both losses, the divergence and the equal top tokens, over the tokens."""
    nll = [-each.gather(1, labels[:, None]).sum() for each in (before, after)]
    divergence = (before.exp() * (before - after)).sum()
    same = (before.argmax(-1) == after.argmax(-1)).sum()
    return torch.stack([*nll, divergence, same]).double()
