"""Text, and the ids that stand for it (chapter 1).

In come files, folders and data sets of the Hub; out go `Document`s. A `Tokenizer` turns
their text into ids and back. In the order of reading:

documents: readers of files and the Hub.  corpus: the embedded texts, and which to take.
bpe: byte-pair encoding, for teaching.  interface: what every tokenizer can do.
arcade: the report's tokenizer.  sentence_piece: small models.  merges: ranks as other
programs write them.  tokenizer_json: a released folder's.  tokenizer: loads any.
chat: conversations as ids.  conversations: readers of them.
"""
