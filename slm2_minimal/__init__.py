"""Stable LM 2 from scratch: the small exact package that every chapter of the book
imports.

The names below are its public contract. Each is imported from its room when it is first
asked for, so that `import slm2_minimal` and `slm2 --help` do not wait for torch. The
rooms, in the order in which data flows: config, text, model, data, prepare,
distributed, train, evaluate, inference, export, launch; `teach` is for the book alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slm2_minimal.config import ModelConfig, ScheduleConfig
    from slm2_minimal.inference.generate import generate
    from slm2_minimal.model.rope import apply_rotary, rotary_angles
    from slm2_minimal.model.transformer import StableLM2
    from slm2_minimal.text.corpus import load_corpus
    from slm2_minimal.text.tokenizer import load_tokenizer
    from slm2_minimal.train.schedule import learning_rate

__all__ = ["ModelConfig", "ScheduleConfig", "StableLM2", "apply_rotary", "generate"]
__all__ += ["learning_rate", "load_corpus", "load_tokenizer", "rotary_angles"]

_MODULES = {
    "config": ["ModelConfig", "ScheduleConfig"],
    "inference.generate": ["generate"],
    "model.rope": ["apply_rotary", "rotary_angles"],
    "model.transformer": ["StableLM2"],
    "text.corpus": ["load_corpus"],
    "text.tokenizer": ["load_tokenizer"],
    "train.schedule": ["learning_rate"],
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
