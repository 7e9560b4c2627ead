"""The configurations as a whole: copies, files, what lies over them, paths, and lengths
that follow the run.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.config import (
    ConfigError,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
    parse_overrides,
    preset_names,
    read_toml,
)
from slm2_minimal.files import whole_file
from tests.complaints import config_error as complaint

# Frozen values and copies


def test_a_config_cannot_be_changed() -> None:
    run = RunConfig.preset("tiny")
    for target, field in (
        (run, "model"),
        (run.model, "vocab_size"),
        (run.schedule, "kind"),
        (run.data.sources["en"], "weight"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, field, getattr(target, field))
    assert {ModelConfig(), ModelConfig(), ModelConfig(vocab_size=200_000)} == {
        ModelConfig(),
        ModelConfig(vocab_size=200_000),
    }


def test_replace_makes_a_checked_copy() -> None:
    model = ModelConfig()
    assert model.replace(num_hidden_layers=2).num_hidden_layers == 2
    assert model.num_hidden_layers == 24
    assert "model.num_hidden_layers = 0" in complaint(lambda: model.replace(num_hidden_layers=0))


@pytest.mark.parametrize("name", preset_names())
def test_round_trip_through_a_dictionary_and_json(name: str) -> None:
    run = RunConfig.preset(name)
    assert RunConfig.from_dict(run.to_dict()) == run
    assert RunConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    changed = run.to_dict()
    changed["train"]["seed"] += 1
    assert RunConfig.from_dict(changed) != run
    assert run == RunConfig.preset(name)  # to_dict gave a copy


# TOML files


def test_a_file_with_one_table_has_defaults_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        "[train]\nsteps = 7\nprompts = ['a', 'b']\n[data.sources]\nweb = { weight = 3, languages ="
        " ['en'] }\n"
    )
    run = RunConfig.load(path)
    assert run.train == TrainConfig(steps=7, prompts=("a", "b"))
    assert run.data.sources == {"web": SourceConfig(weight=3, languages=("en",))}
    assert (run.model, run.schedule, run.optimizer) == (
        ModelConfig(),
        ScheduleConfig(),
        OptimizerConfig(),
    )
    assert RunConfig.load(str(path)) == run


def test_a_number_may_stand_for_another_kind_where_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[model]\nrope_theta = 500000\n")
    assert RunConfig.load(path).model.rope_theta == 500_000.0
    path.write_text("[model]\nhidden_size = 2048.0\n")
    assert RunConfig.load(path).model.hidden_size == 2048
    path.write_text("[model]\nhidden_size = 2048.5\n")
    assert "model.hidden_size = 2048.5" in complaint(lambda: RunConfig.load(path))


@pytest.mark.parametrize(
    "content",
    [b"[train\nsteps = 1", b"steps = = 3", b"[train]\nsteps = 1\nsteps = 2", b"\xff\xfe[train]"],
)
def test_broken_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    message = complaint(lambda: RunConfig.load(path))
    assert message.startswith(f"config = {str(path)!r}: not valid TOML (")
    assert complaint(lambda: read_toml(path)) == message


def test_missing_toml(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.toml"
    assert complaint(lambda: RunConfig.load(path)).startswith(
        f"config = {str(path)!r}: No such file"
    )
    path.mkdir()
    assert complaint(lambda: RunConfig.load(path)).startswith(
        f"config = {str(path)!r}: Is a directory"
    )


@pytest.mark.parametrize(
    "content",
    [b"[" * 5000, b"a = " + b"[" * 5000, b"a = " + b"9" * 5000],
    ids=["tables", "lists", "digits"],
)
def test_toml_that_cannot_be_held(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    assert re.search("nested too deep|not valid TOML", complaint(lambda: read_toml(path)))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbfbase = 'tiny'\n")
    assert RunConfig.load(path) == RunConfig.preset("tiny")


# Overrides


def test_parse_overrides() -> None:
    arguments = ["--train.steps", "10", "--model.use_qkv_bias=false"]
    arguments += ["--schedule.peak_rate", "1e-4", "--train.output_dir", "runs/a b"]
    arguments += ["--train.prompts", '["x", "y = 1"]', "--data.tokenizer='tiny'"]
    arguments += ["--data.sources.web.path=a=b", "--data.seed", "-1"]
    assert parse_overrides(arguments) == {
        "train.steps": 10,
        "model.use_qkv_bias": False,
        "schedule.peak_rate": 1e-4,
        "train.output_dir": "runs/a b",
        "train.prompts": ["x", "y = 1"],
        "data.tokenizer": "tiny",
        "data.sources.web.path": "a=b",
        "data.seed": -1,
    }
    assert parse_overrides([]) == {}
    assert parse_overrides(["--train.steps=1", "--train.steps", "2"]) == {"train.steps": 2}


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["--train.steps"], "train.steps: missing"),
        (["train.steps=3"], "argument = 'train.steps'"),
        (["--steps", "3"], "argument = '--steps'"),
        (["--train.steps", "3", "4"], "argument = '4'"),
    ],
)
def test_wrong_overrides(arguments: list[str], place: str) -> None:
    assert complaint(lambda: parse_overrides(arguments)).startswith(place)


@given(
    st.dictionaries(
        st.sampled_from(["train.log_every", "train.seed", "data.seed"]), st.integers(1, 2**40)
    )
)
def test_overrides_lie_over_a_preset_and_leave_the_rest(overrides: dict[str, int]) -> None:
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    run = RunConfig.load("tiny", parse_overrides(words))
    expected = RunConfig.preset("tiny").to_dict()
    for key, value in overrides.items():
        section, field = key.split(".")
        expected[section][field] = value
    assert run.to_dict() == expected


def test_overrides_are_not_changed_by_what_lies_over_them() -> None:
    given: dict[str, Any] = {"data.sources": {"en": {"languages": ["en"]}}}
    run = RunConfig.load("tiny", given | {"data.sources.en.max_epochs": 7.0})
    assert run.data.sources["en"].max_epochs == 7.0
    assert given == {"data.sources": {"en": {"languages": ["en"]}}}


def test_an_override_adds_a_source() -> None:
    run = RunConfig.load("tiny", {"data.sources.web.path": "texts", "data.sources.web.weight": 5})
    assert run.data.sources["web"] == SourceConfig(path="texts", weight=5)
    assert len(run.data.sources) == 10


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("train.stepz", 3, "train.stepz = 3"),
        ("trail.steps", 3, "[trail]"),
        ("train.steps", "ten", "train.steps = 'ten'"),
        ("train.steps.x", 3, "train.steps.x = 3"),
        ("data.sources.web.path", 3, "data.sources.web.path = 3"),
        ("data.seq_len", 1024, "data.seq_len = 1024"),
        ("train.micro_batch_size", 3_001, "train.global_batch_tokens = "),
    ],
)
def test_overrides_that_cannot_be(key: str, value: Any, place: str) -> None:
    assert complaint(lambda: RunConfig.load("tiny", {key: value})).startswith(place)


def test_shares_and_parts_stay_what_they_are(tmp_path: Path) -> None:
    """2 is a part and 0.5 a share; a float that happens to be whole is a share too."""
    path = tmp_path / "run.toml"
    path.write_text("[data.sources]\na = {weight = 2}\nb = {weight = 0.5}\nc = {weight = 1.0}\n")
    weights = [source.weight for source in RunConfig.load(path).data.sources.values()]
    assert [(type(weight), weight) for weight in weights] == [(int, 2), (float, 0.5), (float, 1.0)]


# Files that are whole or absent


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Paths: one rule for all keys


@pytest.mark.parametrize(
    "key",
    [
        "train.output_dir",
        "train.start_from",
        "train.init_from",
        "data.tokenizer",
        "data.prepared",
        "data.sources.it.path",
        "prepare.benchmarks.a",
    ],
)
def test_a_path_is_expanded_and_has_a_name(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    value: Any = RunConfig.load("tiny", {key: "~/there"}).to_dict()
    for name in key.split("."):
        value = value[name]
    assert value == "/home/someone/there"

    for text, remedy in {
        "": "no name",
        " ": "no name",
        "a\0b": "NUL",
        "~nobody-x/a": "no such user",
    }.items():
        with pytest.raises(ConfigError, match=f"^{re.escape(f'{key} = {text!r}: ')}.*{remedy}"):
            RunConfig.load("tiny", {key: text})


# A schedule that follows the run


def schedule_of(text: str, folder: Path) -> ScheduleConfig:
    path = folder / "run.toml"
    path.write_text(text)
    return RunConfig.load(path).schedule


def test_decimals_are_shares_of_the_run_and_integers_are_updates(tmp_path: Path) -> None:
    lengths = "[schedule]\nwarmup_steps = 0.1\ndecay_steps = 1.08\ncooldown_start = {}\n"
    lengths += "cooldown_steps = 0.16\n[train]\nsteps = {}\n"
    schedule = schedule_of(lengths.format(0.84, 1000), tmp_path)
    assert (schedule.warmup_steps, schedule.decay_steps) == (100, 1080)
    assert (schedule.cooldown_start, schedule.cooldown_steps, schedule.end) == (840, 160, 1000)
    assert schedule_of(lengths.format(840, 1000), tmp_path) == schedule
    assert RunConfig.load(
        tmp_path / "run.toml", {"train.steps": 500, "schedule.cooldown_start": 420}
    ) == (
        RunConfig.load(tmp_path / "run.toml", {"train.steps": 500, "schedule.cooldown_start": 0.84})
    )


@pytest.mark.parametrize("name", ["tiny", "laptop", "stablelm-2-1_6b-gpu", "stablelm-2-1_6b-node"])
def test_the_schedules_of_small_runs_end_with_them(name: str) -> None:
    for steps in (*range(1, 60), 99, 101, 1_000_003):
        run = RunConfig.load(name, {"train.steps": steps})
        assert run.schedule.end == steps
        assert run.schedule.cooldown_steps == max(1, round(0.16 * steps))
        assert run.schedule.warmup_steps == max(1, round(0.01944 * steps))


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("stablelm-2-1_6b", {"train.steps": 500_001}),
        ("tiny", {"schedule.cooldown_start": 1000}),
        (
            "tiny",
            {
                "schedule": {"kind": "cosine", "min_rate": 0.0, "decay_steps": 0.9},
                "train.steps": 100,
            },
        ),
    ],
)
def test_a_run_that_goes_on_at_a_rate_of_0_is_refused(
    preset: str, overrides: dict[str, Any]
) -> None:
    message = complaint(lambda: RunConfig.load(preset, overrides))
    assert re.match(r"train.steps = \d+: goes on at a rate of 0 after .* step \d+; move", message)


def test_shares_that_cannot_be() -> None:
    for share in (-0.1, 10.5, 1e3, float("nan"), float("inf")):
        message = complaint(lambda: RunConfig.load("tiny", {"schedule.decay_steps": share}))  # noqa: B023
        assert message.startswith(f"schedule.decay_steps = {share}: a decimal is a share of train")
