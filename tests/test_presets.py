"""The presets against the report's numbers, against each other, and against counts by
hand.
"""

import dataclasses
import json
from pathlib import Path

import pytest

from slm2_minimal.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
    preset_names,
    preset_path,
    read_toml,
)
from slm2_minimal.data.training_data import open_training_data
from slm2_minimal.text.tokenizer import load_tokenizer

FULL = "stablelm-2-1_6b"


# The report's numbers. Sources: the released weights, the training YAML and the model
# card, except where a line says otherwise.


def test_model_of_the_report() -> None:
    assert dataclasses.asdict(ModelConfig.preset(FULL)) == {
        "vocab_size": 100_352,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": True,
        "norm_bias": True,
        "final_norm_bias": True,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": 100_257,
        "eos_token_id": 100_257,
    }
    assert (ModelConfig.preset(FULL).head_dim, ModelConfig.preset(FULL).rotary_dim) == (64, 16)


def test_schedule_of_the_report() -> None:
    assert dataclasses.asdict(ScheduleConfig.preset(FULL)) == {
        "kind": "hybrid",
        "peak_rate": 1e-3,
        "min_rate": 1e-4,
        "warmup_steps": 9_720,
        "decay_steps": 540_000,
        "cooldown_start": 420_000,
        "cooldown_steps": 80_000,
    }


def test_optimizer_of_the_report() -> None:
    assert dataclasses.asdict(OptimizerConfig.preset(FULL)) == {
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
    }


def test_data_and_loop_of_the_report() -> None:
    data, train = DataConfig.preset(FULL), TrainConfig.preset(FULL)
    assert (data.tokenizer, data.seq_len, data.seed, data.sources) == ("arcade100k", 4096, 1234, {})
    assert (train.global_batch_tokens, train.micro_batch_size, train.save_every, train.seed) == (
        8_388_608,
        2,
        2_000,
        1234,
    )
    assert (
        train.global_batch_tokens == 512 * 2 * 2 * data.seq_len
    )  # GPUs x micro-batch x accumulation x context
    assert train.steps == 500_000  # derived: 420,000 + 80,000
    assert train.dtype == "bfloat16"


def test_the_defaults_are_the_report() -> None:
    for section in (ModelConfig, OptimizerConfig):
        assert section() == section.preset(FULL)
    assert ScheduleConfig(cooldown_start=420_000, cooldown_steps=80_000) == ScheduleConfig.preset(
        FULL
    )


# Counting


def test_published_parameter_counts() -> None:
    model = ModelConfig.preset(FULL)
    assert model.num_parameters() == 1_644_515_328  # the released file
    assert model.replace(norm_bias=False).num_parameters() == 1_644_417_024  # the model card
    assert model.replace(norm_bias=False, final_norm_bias=False).num_parameters() == 1_644_414_976
    assert model.num_parameters(embeddings=False) == 1_644_515_328 - 205_520_896


def test_parameter_count_by_hand() -> None:
    # 2 layers of width 4 with 2 heads of 2 and one key/value head, MLP 6, vocabulary 10
    model = ModelConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        partial_rotary_factor=1.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    layer = (4 * 4 + 4) + 2 * (4 * 2 + 2) + 4 * 4 + 3 * 4 * 6 + 2 * (4 + 4)
    assert model.num_parameters() == 10 * 4 + 2 * layer + (4 + 4) + 10 * 4
    assert model.replace(tie_word_embeddings=True).num_parameters() == 10 * 4 + 2 * layer + (4 + 4)
    assert (
        model.replace(tie_word_embeddings=True).num_parameters(embeddings=False)
        == 2 * layer + (4 + 4) + 10 * 4
    )
    assert model.replace(use_qkv_bias=False).num_parameters() == model.num_parameters() - 2 * (
        4 + 2 + 2
    )


def test_tiny_has_the_stated_size() -> None:
    tiny = RunConfig.preset("tiny")
    assert 5.2e6 < tiny.model.num_parameters() < 5.5e6
    assert (tiny.model.vocab_size, tiny.model.head_dim, tiny.model.rotary_dim) == (1024, 64, 16)
    assert sorted(tiny.data.sources) == ["code", "de", "en", "es", "fr", "it", "math", "nl", "pt"]


def test_presets() -> None:
    assert preset_names() == [
        "laptop",
        "stablelm-2-1_6b",
        "stablelm-2-1_6b-gpu",
        "stablelm-2-1_6b-node",
        "stablelm-2-1_6b-sft",
        "tiny",
        "tiny-sft",
    ]
    for name in preset_names():
        run = RunConfig.preset(name)
        assert ModelConfig.preset(name) == run.model
        assert TrainConfig.preset(name) == run.train


WRITTEN_OUT = json.loads(Path(__file__).with_name("presets_written_out.json").read_text())


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_preset_on_a_base_is_what_it_was_written_out(name: str) -> None:
    """The file holds every value of the preset as it was before it had a base."""
    run = json.loads(json.dumps(RunConfig.preset(name).to_dict()))
    for table, fields in WRITTEN_OUT[name].items():
        assert {key: run[table][key] for key in fields} == fields


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_preset_on_a_base_says_only_what_differs(name: str) -> None:
    tables = read_toml(preset_path(name))
    base = RunConfig.preset(tables.pop("base")).to_dict()
    for table, fields in tables.items():
        for key, value in fields.items():
            assert value != base[table][key], f"{table}.{key} is the base's"


@pytest.mark.parametrize("name", ["stablelm-2-1_6b-node", "stablelm-2-1_6b-gpu"])
def test_smaller_runs_of_the_reports_model(name: str) -> None:
    run, full = RunConfig.preset(name), RunConfig.preset(FULL)
    assert (run.model, run.optimizer) == (full.model, full.optimizer)
    for field in ("tokenizer", "seq_len", "seed", "sources"):
        assert getattr(run.data, field) == getattr(full.data, field)
    assert (run.train.dtype, run.train.seed, run.schedule.kind) == ("bfloat16", 1234, "hybrid")
    assert run.schedule.peak_rate / run.schedule.min_rate == pytest.approx(10)


def test_how_long_the_smaller_runs_are() -> None:
    """Of the node, about 20 tokens a parameter; of the one GPU, about a billion
    tokens.
    """
    node, gpu = (RunConfig.preset(f"{FULL}-{name}") for name in ("node", "gpu"))
    assert (
        node.train.steps * node.train.global_batch_tokens / node.model.num_parameters()
        == pytest.approx(19.1, abs=0.1)
    )
    assert gpu.train.steps * gpu.train.global_batch_tokens == pytest.approx(1.05e9, rel=0.01)
    assert (node.parallel.strategy, gpu.parallel.strategy) == ("zero1", "single")


def test_the_laptop_trains_the_tiny_model_on_its_sources() -> None:
    """As many tokens as tiny, in batches that two processes can share."""
    laptop, tiny = RunConfig.preset("laptop"), RunConfig.preset("tiny")
    assert (laptop.model, laptop.optimizer, laptop.data.sources) == (
        tiny.model,
        tiny.optimizer,
        tiny.data.sources,
    )
    assert (
        laptop.train.steps * laptop.train.global_batch_tokens
        == tiny.train.steps * tiny.train.global_batch_tokens
    )
    assert (
        laptop.train.global_batch_tokens % (2 * laptop.train.micro_batch_size * laptop.data.seq_len)
        == 0
    )
    assert laptop.data.prepared is not None


def test_fine_tuning_by_the_reports_recipe() -> None:
    """The report's numbers of it are unverified, and the preset says so."""
    run = RunConfig.preset(f"{FULL}-sft")
    assert run.model == ModelConfig.preset(FULL)
    assert (run.schedule.kind, run.schedule.peak_rate) == ("cosine", 5e-5)
    assert run.train.global_batch_tokens == 512 * 4096
    text = preset_path(f"{FULL}-sft").read_text()
    for key in ("kind", "peak_rate", "warmup_steps", "seq_len", "global_batch_tokens"):
        [line] = [line for line in text.splitlines() if line.startswith(f"{key} = ")]
        assert "unverified" in line


def test_the_tiny_model_is_tuned_on_its_instructions() -> None:
    run, tiny = RunConfig.preset("tiny-sft"), RunConfig.preset("tiny")
    assert (run.model, run.data.tokenizer) == (tiny.model, tiny.data.tokenizer)
    assert run.train.init_from == tiny.train.output_dir
    assert run.data.is_chat
    sequences = open_training_data(run.data, load_tokenizer("tiny")).loader.counts
    assert run.train.steps * run.train.global_batch_tokens == 3 * sum(sequences) * run.data.seq_len


@pytest.mark.parametrize("name", ["tiny-sft", f"{FULL}-sft"])
def test_fine_tuning_warms_up_for_a_tenth_and_ends_at_zero(name: str) -> None:
    schedule, steps = ScheduleConfig.preset(name), TrainConfig.preset(name).steps
    assert schedule.warmup_steps == round(0.1 * steps)
    assert schedule.decay_steps == steps
    assert (schedule.min_rate, schedule.cooldown_start) == (0, None)


@pytest.mark.parametrize("name", [name for name in preset_names() if "-sft" not in name])
def test_schedules_have_the_reports_proportions(name: str) -> None:
    """Warm-up over 1.8% of the period, which is 1.08 times the run, and cooldown over
    the run's last 16%.
    """
    schedule, steps = ScheduleConfig.preset(name), TrainConfig.preset(name).steps
    assert schedule.cooldown_start is not None
    assert schedule.cooldown_steps is not None
    assert schedule.decay_steps == round(1.08 * steps)
    assert schedule.warmup_steps == round(0.018 * schedule.decay_steps)
    assert schedule.cooldown_steps == round(0.16 * steps)
    assert schedule.cooldown_start + schedule.cooldown_steps == steps
