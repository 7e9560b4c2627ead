"""For other programs: a trained model in, a folder or a file in another program's
format out (chapter 14).

`hugging_face` writes what transformers and everything that reads its folders load:
config.json and safetensors, the tokenizer by `tokenizer_files`. `gguf` writes one file
for llama.cpp, the tokenizer in it by `gguf_tokenizer`. `formats` is the door to both. A
source is a run's folder (its best checkpoint), a checkpoint, a Hugging Face folder or a
Hub id. A target is new, or an empty folder, and stays so where the export fails.
"""
