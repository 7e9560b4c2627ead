"""One door to all formats, by the names that a user types."""

from typing import Literal

from slm2_minimal.config import ConfigError
from slm2_minimal.export import gguf, hugging_face

# A type's name in the other format.
DTYPES: dict[str, Literal["float32", "float16", "bfloat16"]] = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
}
TYPES = {"hf": tuple(DTYPES), "gguf": gguf.TYPES}


def export(
    source: str, out: str, file_format: str, file_type: str, tokenizer: str | None = None
) -> str:
    """Write the model `source` to `out` in a format of TYPES, its weights in one of the
    format's types; one line that says what was written.

    A `tokenizer` is named for gguf alone, where the model does not name its own.

    Raises:
        ConfigError: the format has no such type, or takes no tokenizer.
        UserError: what the format's own `export` raises.
    """
    types = TYPES[file_format]
    if file_type not in types:
        raise ConfigError(
            f"--type {file_type}: is none of --format {file_format}; give {', '.join(types)}"
        )
    if file_format == "gguf":
        return gguf.export(source, out, file_type, tokenizer)
    if tokenizer is not None:
        raise ConfigError(f"--tokenizer {tokenizer}: goes with --format gguf; leave it out")
    return hugging_face.export(source, out, DTYPES[file_type])
