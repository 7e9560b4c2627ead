"""A tokenizer as transformers reads it: tokenizer.json and tokenizer_config.json.

`AutoTokenizer` then gives the ids of our own `encode(text, allow_special=True)`: it
takes the name of a special token in a text for that token. With
`split_special_tokens=True` the name is text, as in our plain `encode`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slm2_minimal.config import DataError
from slm2_minimal.distributed.pretrained import chat_format
from slm2_minimal.files import read_json, whole_file, write_json
from slm2_minimal.text.arcade import UNUSED_ID, Arcade100k
from slm2_minimal.text.chat import TEMPLATES
from slm2_minimal.text.interface import Tokenizer
from slm2_minimal.text.merges import merges, to_chars
from slm2_minimal.text.sentence_piece import SPACE_SYMBOL, SentencePieceTokenizer
from slm2_minimal.text.tokenizer_json import BYTE_LEVEL, PRE_TOKENIZERS

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
# Ids follow each other in a tokenizer.json, so the unused one needs a name. No merge
# leads to it, and no text becomes it.
UNUSED = "<|unused|>"


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, context: int, chat_template: str | None = None
) -> str | None:
    """Write a tokenizer's files; `context` is how many tokens its model reads.

    Of SentencePiece models the model file is written too. Where a tokenizer.json would
    give other ids it stands alone, and what is returned says why.
    """
    reason = None
    if isinstance(tokenizer, SentencePieceTokenizer):
        with whole_file(folder / "tokenizer.model") as file:
            file.write(tokenizer.model)
        reason = why_not_exact(tokenizer)
        if reason is None:
            write_json(folder / "tokenizer.json", sentence_piece_json(tokenizer))
    elif isinstance(tokenizer, Arcade100k):
        write_json(folder / "tokenizer.json", arcade_json(tokenizer))

    # what transformers asks for beside it
    names = {token_id: name for name, token_id in tokenizer.special_tokens.items()}
    end = names.get(tokenizer.eos_token_id)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": end,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    write_json(folder / CONFIG, config)
    return reason and f"no tokenizer.json was written: of its SentencePiece model, {reason}"


def chat_template_of(source: str, tokenizer: str | None) -> str | None:
    """The template of a model's chat format: what its folder has, or what a run was
    trained in. Raises DataError as `read_chat_template`.
    """
    if format := chat_format(source):
        return TEMPLATES[format]
    return read_chat_template(Path(tokenizer)) if tokenizer else None


def read_chat_template(folder: Path) -> str | None:
    """The chat template of a folder in Hugging Face's format, if it has one.

    Raises:
        DataError: the file in which it would stand cannot be read.
    """
    path = folder / TEMPLATE
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
        path = folder / CONFIG
        config = read_json(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); download it again") from None

    found = config.get("chat_template") if isinstance(config, dict) else None
    if isinstance(found, list):  # several, by name
        templates = [each for each in found if isinstance(each, dict)]
        default = [each for each in templates if each.get("name") == "default"]
        found = default[0].get("template") if default else None
    return found if isinstance(found, str) else None


def arcade_json(tokenizer: Arcade100k) -> dict[str, Any]:
    """Arcade100k's tokenizer.json, cut and named as in the released one."""
    ranks = {tokenizer.token_bytes(i): i for i in range(UNUSED_ID)}
    vocab = {to_chars(token): rank for token, rank in ranks.items()}
    pairs = [[to_chars(left), to_chars(right)] for left, right in merges(ranks)]
    return _tokenizer_json(
        tokenizer.special_tokens,
        vocab={**vocab, UNUSED: UNUSED_ID},
        merges=pairs,
        byte_fallback=False,
        pre_tokenizer=PRE_TOKENIZERS[0],
        decoder={**BYTE_LEVEL, "trim_offsets": False},
    )


def sentence_piece_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The tokenizer.json of a BPE model for which `why_not_exact` has no reason.

    A space stands for itself in it, and not as U+2581, which so remains an ordinary
    character: one without a piece of its own, of which the bytes are taken.
    """
    pieces = [(each.piece.replace(SPACE_SYMBOL, " "), each) for each in proto(tokenizer).pieces]
    vocab = {text: i for i, (text, _) in enumerate(pieces)}

    # the highest score is merged first
    scores = {text: each.score for text, each in pieces if each.type == each.Type.NORMAL}
    by_score = sorted(scores, key=scores.__getitem__, reverse=True)
    ranks = {text: rank for rank, text in enumerate(by_score)}
    return _tokenizer_json(
        tokenizer.special_tokens,
        vocab=vocab,
        merges=[list(pair) for pair in merges(ranks)],
        byte_fallback=True,
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    )


def why_not_exact(tokenizer: SentencePieceTokenizer) -> str | None:
    """What a tokenizer.json could not say exactly of a SentencePiece model, or None."""
    model = proto(tokenizer)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    normal = [piece for piece in model.pieces if piece.type == piece.Type.NORMAL]
    own = [piece.piece for piece in model.pieces if piece.type == piece.Type.USER_DEFINED]

    # what the format has no field for, and whether the model does it
    reasons = {
        "it is no BPE model": trainer.model_type != trainer.ModelType.Value("BPE"),
        "it changes characters": normalizer.precompiled_charsmap != b"",
        "it adds or removes spaces": normalizer.add_dummy_prefix
        or normalizer.remove_extra_whitespaces
        or not normalizer.escape_whitespaces,
        "it has no bytes to fall back on": not trainer.byte_fallback,
        "it has symbols of its own that are longer than a character, or parts of others": any(
            len(symbol) > 1 or any(symbol in piece.piece for piece in normal) for symbol in own
        ),
        "two of its pieces come at the same time": len({piece.score for piece in normal})
        < len(normal),
        "pieces of it are switched off": any(
            piece.type == piece.Type.UNUSED for piece in model.pieces
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def proto(tokenizer: SentencePieceTokenizer) -> Any:
    """A SentencePiece model by its fields."""
    from sentencepiece import sentencepiece_model_pb2 as fields  # takes a while

    return fields.ModelProto.FromString(tokenizer.model)  # type: ignore[attr-defined]


def _tokenizer_json(
    special_tokens: Mapping[str, int],
    *,
    vocab: dict[str, int],
    merges: list[list[str]],
    byte_fallback: bool,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    """A tokenizer.json with all the fields that its library writes."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": name, **flags, "special": True}
            for name, token_id in special_tokens.items()
        ],
        # what is done to a text, in this order
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": byte_fallback,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
