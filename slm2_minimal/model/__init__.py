"""The model: token ids in; logits, a loss or log-probabilities out (chapters 2, 3, 7).

Read `rope` (positions), `masks` (who sees whom), `cache` (keys and values already
computed), `attention`, `block`, and `transformer`, which puts them together. Then
`loss` (what training and scoring make of the hidden states), `flops` (what a token
costs), `hub` (Hugging Face's files), and `quantised` (layers of 8 and 4 bits) with
`int_kernels` and `compiled` (what multiplies them, torch's and ours). Nothing here
knows of processes, of training or of tokenizers. Shapes: B batch, T tokens, S keys, H
heads, K key-value heads, D head dim, C channels, V vocabulary.

What a change of the architecture touches, for example a norm of queries and keys:

1. `config/sections.py`: a field of `ModelConfig`, and `num_parameters()`.
2. The module itself, here; `StableLM2.init_weight` gives it its first values.
3. `flops.py`, where it multiplies matrices.
4. `launch/memory.py`: what a block keeps for its backward pass, and its tensors.
5. `hub.py`: `FIXED` or `write_config`, and `TENSORS`, where transformers has it.
6. `distributed/parallel.py`: `TENSOR_PLAN`, for a matrix that is to be sliced.
7. `tests/model`: `test_parity.py` holds all of it against transformers.

A forgotten step 1 is an error when the model is built, a forgotten step 5 when it is
saved.
"""
