"""Evaluating: what a model is worth, in numbers that can be compared.

In: a model (`model/`) and held-out text (`data/`). Out: losses in nats per token, per
language, beside the loss of a model that knows no context.

Read `validation.py`. Chapter 7 uses it during training, chapter 6 to compare mixtures.
`bits.py` counts bits per byte, which do not depend on the tokenizer (chapter 12).
`quantised.py` sets a model of fewer bits beside its original (chapter 10).
"""
