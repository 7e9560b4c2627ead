"""Train the SentencePiece model of the tiny preset on the training split of the
embedded corpus.

    python book/experiments/tiny_tokenizer.py
"""

from slm2_minimal.config import PRESET_DIR, RunConfig
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.sentence_piece import train_sentencepiece
from slm2_minimal.text.tokenizer import load_tokenizer


def main() -> None:
    """Train, store, and say how well it compresses."""
    config = RunConfig.preset("tiny")
    percent = config.data.validation_percent
    texts = [d.text for d in load_corpus() if not is_validation(d.id, percent)]
    train_sentencepiece(texts, PRESET_DIR / "tiny.model", config.model.vocab_size)

    tokenizer = load_tokenizer("tiny")
    size = sum(len(text.encode()) for text in texts)
    count = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    print(f"{tokenizer.vocab_size} pieces from {len(texts)} documents")
    print(f"{size / count:.2f} bytes per token on them")


if __name__ == "__main__":
    main()
