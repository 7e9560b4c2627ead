"""Writing: a model and a prompt in, new token ids or text out (chapters 9 and 10).

Read `sampling` first (how one id is drawn from a row of logits), then `generate` (the
loop: each prompt is read once, then one token at a time goes through the model, on a
key-value cache), `lookup` (several tokens at a time, where the text repeats itself),
`text` (ids become characters, and end) and `chat` (a conversation). Options and lengths
are checked before anything is drawn. `quantise` makes a model of fewer bits, which
writes the same way, and `single_rows` makes a large one write faster on a CPU.
"""
