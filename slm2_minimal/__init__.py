"""Stable LM 2 from scratch: the small exact package that every chapter of the book
imports.
"""

from slm2_minimal.config import ModelConfig, ScheduleConfig
from slm2_minimal.inference.generate import generate
from slm2_minimal.model.rope import apply_rotary, rotary_angles
from slm2_minimal.model.transformer import StableLM2
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.tokenizer import load_tokenizer
from slm2_minimal.train.schedule import learning_rate

__all__ = [
    "ModelConfig",
    "ScheduleConfig",
    "StableLM2",
    "apply_rotary",
    "generate",
    "learning_rate",
    "load_corpus",
    "load_tokenizer",
    "rotary_angles",
]
