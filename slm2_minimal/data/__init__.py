"""Token ids, and the batches that training reads (chapter 6).

In come documents and a `[data]` table; out goes a `TrainingData`, whose loader gives a
batch for any position. Only the last two files need torch. In the order of reading:

reading: which text a source names.  packing: documents to sequences of fixed length.
conversations: the same, with what is learned.  split: what is held out.  shards: the
same on disk.  quota, mixture: which source comes when.  shuffle: in which order.
loader: batches.  training_data: all from a table.
"""
