"""What a run says of itself: FLOPs, a progress line, a JSONL file and TensorBoard."""

import json
import math
import os
from pathlib import Path
from typing import Any

from slm2_minimal.config import ModelConfig


def flops_per_token(config: ModelConfig, seq_len: int) -> int:
    """Floating-point operations to train on one token: 6 (N - V C) + 12 L C T.

    Every weight that multiplies costs 2 forward and 4 backward; the embedding's V x C table is looked up, not
    multiplied, and left out. Attention adds 2 products of T x D per head, 12 L C T in all, counted in full although
    the causal half could be skipped, as the field does. With T = 4096 the 1.6B needs 1.105e10. Norms, rotary and
    softmax are left out: less than 1%.
    """
    queries = config.num_attention_heads * config.head_dim
    return 6 * config.num_parameters(embeddings=False) + 12 * config.num_hidden_layers * queries * seq_len


class RunLog:
    """metrics.jsonl and TensorBoard files in the folder of a run.

    Lines of steps after `start_step`, which a resumed run writes again, are dropped.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= start_step]
            part = self.path.with_suffix(".part")
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            os.replace(part, self.path)
        self.file = self.path.open("a", encoding="utf-8", buffering=1)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """One JSONL line; its numbers also go to TensorBoard under `kind/name`, texts as texts."""
        self.file.write(json.dumps({"step": step, "kind": kind, **values}, ensure_ascii=False) + "\n")
        for name, value in values.items():
            if isinstance(value, dict):
                for key, number in value.items():
                    self.board.add_scalar(f"{kind}/{name}/{key}", number, step)
            elif isinstance(value, str):
                self.board.add_text(f"{kind}/{name}", value, step)
            else:
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        self.board.close()


def _step(line: str) -> float:
    """The step of a JSONL line; infinite for one that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def progress_line(step: int, steps: int, values: dict[str, float], seconds_left: float) -> str:
    """`step 120/600 | loss 4.123 | rate 2.53e-03 | ...`, the same columns at every step."""
    minutes, seconds = divmod(round(seconds_left), 60)
    return (
        f"step {step:>{len(str(steps))}}/{steps} | loss {values['loss']:.3f} | rate {values['rate']:.2e} | "
        f"grad norm {values['grad_norm']:.2f} | {values['tokens_per_second']:,.0f} tokens/s | "
        f"{values['share_of_peak']:.0%} of peak | {minutes}:{seconds:02d} left"
    )
