"""Writing: a model and a prompt in, new token ids or text out (chapters 3 and 9).

Read `sampling` first (how one id is drawn from a row of logits), then `generate` (the
loop: the prompt is read once, then one token at a time goes through the model, on a
key-value cache). `generate` gives tensors, `stream` the ids of each step as they are
drawn, `stream_text` text. Options and lengths are checked before anything is drawn.
"""
