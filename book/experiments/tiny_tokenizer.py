"""Train the SentencePiece model of the tiny preset on the training split of the
embedded corpus.

python book/experiments/tiny_tokenizer.py
"""

from slm2_minimal.config import PRESET_DIR, RunConfig
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import is_validation
from slm2_minimal.text.sentence_piece import train_sentencepiece
from slm2_minimal.text.tokenizer import load_tokenizer

if __name__ == "__main__":
    config = RunConfig.preset("tiny")
    texts = [
        d.text
        for d in load_corpus()
        if not is_validation(d.id, config.data.validation_percent)
    ]
    train_sentencepiece(
        texts, PRESET_DIR / "tiny.model", config.model.vocab_size
    )
    tokenizer = load_tokenizer("tiny")
    size = sum(len(text.encode()) for text in texts)
    count = sum(map(len, tokenizer.encode_batch(texts)))
    print(
        f"{tokenizer.vocab_size} pieces from {len(texts)} documents;"
        f" {size / count:.2f} bytes per token on them"
    )
