"""For other programs: a trained model in, a folder in another program's format out
(chapter 9).

`formats` is the door that the command line takes. `hugging_face` writes what
transformers and everything that reads its folders load: config.json and safetensors,
and through `tokenizer_files` the model's tokenizer. `gguf` writes one file for
llama.cpp, with `gguf_tokenizer`. A source is a run's folder (its best checkpoint), a
checkpoint, a Hugging Face folder or a Hub id. A target is new or empty, and stays so
where the export fails.
"""
