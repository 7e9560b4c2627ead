"""A model with its tokenizer as one GGUF file, for llama.cpp and what is built on it.

llama.cpp knows this architecture as `stablelm`. Its tensors have names of their own and
the same contents: nothing is transposed or permuted. All matrices are of the file's
type, the embedding and the head among them; all vectors are f32.

The quantised types have blocks of 32 weights of a row. Each block has a scale in f16,
in q4_1 a minimum too: q8_0 is 8.5 bits a weight, q4_0 4.5 and q4_1 5.
"""

import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slm2_minimal.config import CheckpointError, ConfigError, DataError, MissingExtraError
from slm2_minimal.distributed.pretrained import check_not_quantised, check_tokenizer, load_model
from slm2_minimal.export.gguf_tokenizer import add_tokenizer
from slm2_minimal.export.tokenizer_files import chat_template_of
from slm2_minimal.files import whole_file
from slm2_minimal.model import hub
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.tokenizer import load_tokenizer

log = logging.getLogger(__name__)

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
LARGEST_F16 = 65_504.0
ROWS = 4096  # of a tensor that are held in the file's type at a time
SECONDS_BETWEEN_LINES = 10.0


def export(
    source: str,
    out: str | Path,
    file_type: str = "f32",
    tokenizer_name: str | None = None,
    chat_template: str | None = None,
) -> str:
    """Write the model `source` into the file `out`, its matrices in one of TYPES; one
    line that says what was written.

    `source` is a run, a checkpoint, a Hugging Face folder or a Hub id. `tokenizer_name`
    says which tokenizer goes along where the source does not. The template of its
    chat format goes along, too; `chat_template` replaces it. The file appears whole or
    not at all.

    Raises:
        CheckpointError: there is no such model, it holds what the format has no place
        for, or its tokenizer's file is another now.
        ConfigError: there is no such type, its blocks do not divide the rows, or the
        model turns no dimension, which llama.cpp cannot run.
        DataError: `out` is there or cannot be written, the model is quantised, there is
        no tokenizer or none that llama.cpp can follow, or a weight is too large for the
        type.
        MissingExtraError: the library `gguf` is not installed.
    """
    if file_type not in TYPES:
        raise ConfigError(f"type = {file_type!r}: unknown; give {', '.join(TYPES)}")
    path = _new_file(out)
    _library()

    model, trained_with = load_model(source, dtype=None)
    check_not_quantised(source, model)
    tokenizer = _tokenizer(source, model, tokenizer_name or trained_with)
    if chat_template is None:
        chat_template = chat_template_of(source, trained_with)
    try:
        with whole_file(path) as file:
            # the library opens the file under this name itself
            write(file.name, Path(source).name, model, tokenizer, file_type, chat_template)
    except OSError as error:
        raise _refused(out, error) from None

    count, size = model.config.num_parameters(), path.stat().st_size / 1e9
    return f"{out}: {count:,} parameters in {file_type}, {size:.2f} GB; tokenizer {tokenizer.name}"


def write(
    path: str | Path,
    name: str,
    model: StableLM2,
    tokenizer: Tokenizer,
    file_type: str,
    chat_template: str | None = None,
) -> None:
    """Write a model of the given name into the file `path`, as `export`. ROWS at a time
    are held in the file's type.
    """
    gguf = _library()
    matrix_type = gguf.GGMLQuantizationType[file_type.upper()]
    block, block_bytes = gguf.GGML_QUANT_SIZES[matrix_type]
    tensors = _tensors(model)
    _check_rows(tensors, block, file_type)
    if model.config.rotary_dim == 0:
        raise ConfigError(
            "model.partial_rotary_factor = 0: llama.cpp, where no dimension turns, never comes to"
            " an end; export it with --format hf"
        )

    # what is known of the model, its tokenizer, and where each tensor lies
    writer = gguf.GGUFWriter(path, "stablelm")
    writer.add_name(name)
    _add_model(writer, model, file_type)
    add_tokenizer(writer, tokenizer, model.config.vocab_size)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    total = 0
    for key, tensor in tensors.items():
        tensor_type, size = gguf.GGMLQuantizationType.F32, 4 * tensor.numel()
        if tensor.dim() == 2:
            tensor_type, size = matrix_type, tensor.numel() // block * block_bytes
        writer.add_tensor_info(key, tensor.shape, np.dtype(np.float32), size, tensor_type)
        total += size
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()

    # the tensors, some rows at a time, each from a multiple of the alignment on
    file = writer.fout[0]
    written = 0
    last_line = time.monotonic()
    for key, tensor in tensors.items():
        writer.write_padding(file, file.tell())
        if tensor.dim() == 2:
            _check_range(key, tensor, file_type)
        for rows in tensor.split(ROWS):
            array = rows.float().contiguous().numpy()
            if tensor.dim() == 2:
                array = gguf.quantize(array, matrix_type)
            array.tofile(file)
            written += array.nbytes
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            last_line = time.monotonic()
            log.info(f"export | {written / 1e9:.2f} of {total / 1e9:.2f} GB")
    writer.write_padding(file, file.tell())
    writer.close()


def _add_model(writer: Any, model: StableLM2, file_type: str) -> None:
    """What llama.cpp must know to run the tensors as ours.

    It does not ask for the rotary dimensions, and without them turns all of each head.
    """
    gguf, config = _library(), model.config
    prefix = "ALL" if file_type == "f32" else "MOSTLY"
    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType[f"{prefix}_{file_type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)

    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_parallel_residual(False)


def _tensors(model: StableLM2) -> dict[str, Tensor]:
    """All tensors by llama.cpp's names, which come from the library's own table.

    llama.cpp wants a head, also where it is the embedding, and the biases of all norms:
    those that the model does not have are zeros.
    """
    gguf = _library()
    state = {key: tensor.detach().cpu() for key, tensor in model.state_dict().items()}
    for key in list(state):
        if re.match(hub.NORM, key):
            state.setdefault(key.replace("weight", "bias"), torch.zeros_like(state[key]))

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.STABLELM, model.config.num_hidden_layers)
    names = {key: table.get_name(key, (".weight", ".bias")) for key in state}
    foreign = [key for key, name in names.items() if name is None]
    if foreign:
        raise CheckpointError(
            f"{foreign[0]}: GGUF's stablelm has no such tensor; export the model as it was before"
            " it was quantised or changed"
        )
    return {names[key]: tensor for key, tensor in state.items()}


def _check_rows(tensors: dict[str, Tensor], block: int, file_type: str) -> None:
    """That every row of a matrix is whole blocks. Raises ConfigError."""
    for key, tensor in tensors.items():
        if tensor.dim() == 2 and tensor.shape[1] % block:
            raise ConfigError(
                f"type = {file_type!r}: has blocks of {block} weights, which do not divide the"
                f" {tensor.shape[1]} of a row of {key}; choose f32, f16 or bf16"
            )


def _check_range(key: str, tensor: Tensor, file_type: str) -> None:
    """That no weight or scale of a block is infinite in f16. Raises DataError."""
    largest = max(-tensor.min(), tensor.max())
    if file_type not in ("f32", "bf16") and largest > LARGEST_F16:
        raise DataError(
            f"type = {file_type!r}: f16 ends at {LARGEST_F16:,.0f}, {key} has {largest:.3g};"
            " choose f32 or bf16"
        )


def _tokenizer(source: str, model: StableLM2, name: str | None) -> Tokenizer:
    """The tokenizer of that name, held against the model."""
    if name is None:
        raise DataError(
            f"model = {source!r}: names no tokenizer, and a GGUF file has one; say which with"
            " --tokenizer"
        )
    tokenizer = load_tokenizer(name)
    check_tokenizer(source, model, tokenizer)
    return tokenizer


def _new_file(out: str | Path) -> Path:
    """The path `out`, at which a file can be made."""
    path = Path(out)
    try:
        if path.exists():
            raise DataError(f"out = {str(out)!r}: is there already; name a new file")
        if not path.parent.is_dir():
            raise DataError(f"out = {str(out)!r}: there is no such folder; make it first")
    except OSError as error:
        raise _refused(out, error) from None
    return path


def _refused(out: str | Path, error: OSError) -> DataError:
    reason = error.strerror or error
    return DataError(f"out = {str(out)!r}: cannot be written ({reason}); name another file")


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("gguf", "gguf", "a GGUF file") from None
    return gguf
