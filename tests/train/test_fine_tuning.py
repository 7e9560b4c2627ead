"""Fine-tuning is a run like any other: from the weights of one, on conversations, with
the same promises.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slm2_minimal.cli import main
from slm2_minimal.config import CheckpointError, RunConfig
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.distributed.pretrained import chat_format, load_model
from slm2_minimal.evaluate.validation import validation_losses, validation_sets
from slm2_minimal.export.hugging_face import export
from slm2_minimal.prepare.run import prepare
from slm2_minimal.text.chat import format_of
from slm2_minimal.text.sentence_piece import SentencePieceTokenizer
from slm2_minimal.train.trainer import Trainer
from tests.train.runs import assert_bitwise, final_files, losses, weights

Make = Callable[..., RunConfig]
CHAT: dict[str, Any] = {
    "data.sources": {"own": {"format": "chat", "languages": ["en", "de"], "max_epochs": 100}},
    "data.seq_len": 64,
    "train.prompts": [],
}


@pytest.fixture
def tuned(small_run: Make) -> Make:
    """`tuned(name, **changes)`: a run that begins with the weights of another."""
    base = small_run("base", **{"train.steps": 10, "train.prompts": []})
    Trainer.from_config(base).run()

    def make(name: str = "tuned", **changes: Any) -> RunConfig:
        start = {"train.init_from": base.train.output_dir}
        return small_run(name, **(CHAT | start | changes))

    return make


def test_from_a_run_to_an_exported_folder(tuned: Make, tmp_path: Path) -> None:
    """It learns, resumes bitwise, and its format goes with it."""
    Trainer.from_config(tuned("whole")).run()
    for steps in (7, 20):
        Trainer.from_config(tuned("parts", **{"train.steps": steps})).run()
    assert_bitwise(final_files(tuned("whole")), final_files(tuned("parts")))
    found = losses(tuned("whole"))
    assert found[20] < found[5] - 0.1

    run = tuned("whole").train.output_dir
    assert chat_format(run) == "zephyr"
    export(run, tmp_path / "exported")
    assert main(["quantise", run, str(tmp_path / "small")]) == 0
    for folder in ("exported", "small"):
        assert format_of(tmp_path / folder) == "zephyr"


def test_it_begins_with_the_weights_and_at_step_0(tuned: Make) -> None:
    config = tuned()
    trainer = Trainer.from_config(config)
    trainer.resume()
    base, _ = load_model(str(config.train.init_from))
    assert_bitwise(weights(trainer), dict(base.state_dict()))
    assert (trainer.state.step, trainer.state.data_position) == (0, 0)
    assert chat_format(str(config.train.init_from)) is None


def test_prepared_conversations_train_the_same_model(tuned: Make, tmp_path: Path) -> None:
    prepared = {
        "data.prepared": str(tmp_path / "prepared"),
        "prepare.workers": 1,
        "prepare.duplicates": "keep",
    }
    prepare(tuned(**prepared))
    Trainer.from_config(tuned("memory")).run()
    Trainer.from_config(tuned("shards", **prepared, **{"data.workers": 1})).run()
    assert_bitwise(final_files(tuned("memory")), final_files(tuned("shards")))


def test_validation_is_of_what_is_learned(tuned: Make, tiny: SentencePieceTokenizer) -> None:
    """By hand from the logits; and the run has the same number."""
    config = tuned(**{"train.steps": 10})
    Trainer.from_config(config).run()
    model, _ = load_model(config.train.output_dir)
    data = open_training_data(config.data, tiny)
    sets = validation_sets(data.held_out, data.token_counts, 64, 4)
    found = validation_losses(model, sets, torch.device("cpu"))
    assert found is not None
    for language, stream in data.held_out.items():
        total, count = 0.0, 0
        for index in range(stream.num_sequences(64)):
            ids, labels, positions, documents = map(torch.from_numpy, stream.sequence(index, 64))
            logits = model(ids[None], positions[None], documents[None])[0].log_softmax(-1)
            for place in (labels >= 0).nonzero().flatten():
                total -= logits[place, labels[place]].item()
                count += 1
        assert count < stream.num_tokens / 2
        assert found[language] == pytest.approx(total / count, rel=1e-4)
    best = json.loads((Path(config.train.output_dir) / "best.json").read_text())
    assert best["losses"] == pytest.approx(found, rel=1e-4)


def test_another_length_or_format_is_another_run(tuned: Make) -> None:
    Trainer.from_config(tuned(**{"train.steps": 10})).run()
    with pytest.raises(CheckpointError, match=re.escape("data.chat = 'plain': the run in")):
        Trainer.from_config(tuned(**{"data.chat": "plain"})).run()
