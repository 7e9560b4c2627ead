"""Evaluating: what a model is worth, in numbers that can be compared, and how sure they
are.

In: a model (`model/`) and held-out text (`data/`), or tasks (`tasks/`). Out: losses in
nats per token, per language, beside the loss of a model that knows no context; scores
by task and by item.

Read `validation.py`. Chapter 7 uses it during training, chapter 6 to compare mixtures.
`bits.py` counts bits per byte, which do not depend on the tokenizer (chapter 12).

Then `score.py` (how likely a continuation is), `statistics.py` (errors, and two models
on the same items), `harness.py` (the same for lm-evaluation-harness) and `results.py`
(its tasks, one after the other): chapter 11. `local_tasks.py` made the ones that need
no network from the embedded corpus. `quantised.py` sets a model of fewer bits
beside its original (chapter 10).

`retrieval.py` asks for numbers that it hid in long texts (chapter 13), of a model or by
`endpoint.py` of a server; `retrieval_maps.py` draws what was found.
"""
