"""Aligning: from a model that continues text to one that answers.

So far only the data is here, in seven languages: instructions and dialogues, pairs of a
better and a worse answer, questions about the model itself and the facts that answer
them. Where a rule can check an answer without another model, it stands beside it.

Read `examples.py`, which also says what is held out for testing.
"""
