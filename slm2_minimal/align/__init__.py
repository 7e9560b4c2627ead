"""Aligning: from a model that continues text to one that answers.

So far only the data is here: instructions and dialogues, pairs of a better and a worse
answer, questions about the model itself and the facts that answer them, in the report's
seven languages, written for this project. Each has a rule by which an answer can be
checked without another model; of the pairs, those that are wrong by a rule do.

Read `examples.py`. What is held out for testing is told there in one place.
"""
