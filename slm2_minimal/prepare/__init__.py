"""From raw text to shards: what `slm2 prepare` does.

In: the sources of a configuration, as files, folders, Hub ids or the embedded corpus.
Out: a folder of shards with a manifest, held-out documents and a report, which
`slm2_minimal.data` opens for training. Read `units` (text in pieces), `words` and
`minhash` (what texts are compared by), `duplicates` and `decontaminate` (what goes),
`work` (all that is done to one unit), `run` (the stages on one machine, with `workers`
and `publish`), and last `cluster` (the same stages on many). Chapter 5 is about it.
"""
