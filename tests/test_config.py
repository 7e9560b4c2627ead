"""The configurations: the report's numbers as literals, and one line for every way to
get them wrong.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm2_minimal.config import (
    ConfigError,
    DataConfig,
    MissingExtraError,
    ModelConfig,
    OptimizerConfig,
    PrepareConfig,
    RunConfig,
    ScheduleConfig,
    SourceConfig,
    TrainConfig,
    UserError,
    parse_overrides,
    preset_names,
    read_toml,
)
from slm2_minimal.files import whole_file
from tests.complaints import config_error as complaint

FULL = "stablelm-2-1_6b"


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


# Errors. Every message names field and value and says what would be right.

WRONG_VALUES: list[tuple[Callable[..., Any], dict[str, Any], str, str]] = [
    (ModelConfig, {"vocab_size": -5}, "model.vocab_size = -5", "greater than 0"),
    (ModelConfig, {"vocab_size": "many"}, "model.vocab_size = 'many'", "valid integer"),
    (ModelConfig, {"vocab_size": 1.5}, "model.vocab_size = 1.5", "valid integer"),
    (ModelConfig, {"vocab_size": True}, "model.vocab_size = True", "valid integer"),
    (ModelConfig, {"use_qkv_bias": 1}, "model.use_qkv_bias = 1", "valid boolean"),
    (ModelConfig, {"hidden_act": "gelu"}, "model.hidden_act = 'gelu'", "'silu'"),
    (
        ModelConfig,
        {"layer_norm_eps": 0.0},
        "model.layer_norm_eps = 0.0",
        "greater than or equal to 0.0000",
    ),
    (
        ModelConfig,
        {"rope_theta": float("inf")},
        "model.rope_theta = inf",
        "less than or equal to 1",
    ),
    (
        ModelConfig,
        {"partial_rotary_factor": 1.5},
        "model.partial_rotary_factor = 1.5",
        "less than or equal to 1",
    ),
    (
        ModelConfig,
        {"partial_rotary_factor": float("nan")},
        "model.partial_rotary_factor = nan",
        "less than or equal to 1",
    ),
    (ModelConfig, {"partial_rotary_factor": 0.27}, "model.partial_rotary_factor = 0.27", "even"),
    (ModelConfig, {"hidden_size": 2050}, "model.hidden_size = 2050", "nearest is 2048"),
    (
        ModelConfig,
        {"num_key_value_heads": 5},
        "model.num_key_value_heads = 5",
        "divide num_attention_heads = 32",
    ),
    (ModelConfig, {"vocab_size": 1000}, "model.bos_token_id = 100257", "below vocab_size = 1000"),
    (
        ModelConfig,
        {"eos_token_id": 100_352},
        "model.eos_token_id = 100352",
        "below vocab_size = 100352",
    ),
    (ModelConfig, {"hiden_size": 64}, "model.hiden_size = 64", "did you mean 'hidden_size'"),
    (ModelConfig, {"zzz": 64}, "model.zzz = 64", "known are bos_token_id, "),
    (ScheduleConfig, {"kind": "linear"}, "schedule.kind = 'linear'", "'hybrid', 'cosine'"),
    (ScheduleConfig, {"peak_rate": -1e-3}, "schedule.peak_rate = -0.001", "greater than 0"),
    (ScheduleConfig, {"min_rate": 2e-3}, "schedule.min_rate = 0.002", "below peak_rate = 0.001"),
    (
        ScheduleConfig,
        {"min_rate": float("nan")},
        "schedule.min_rate = nan",
        "greater than or equal to 0",
    ),
    (
        ScheduleConfig,
        {"cooldown_start": 10},
        "schedule.cooldown_start = 10, cooldown_steps = None",
        "both or neither",
    ),
    (ScheduleConfig, {"kind": "wsd"}, "schedule.kind = 'wsd'", "needs cooldown_start"),
    (
        ScheduleConfig,
        {"kind": "inverse_sqrt", "warmup_steps": 0},
        "schedule.warmup_steps = 0",
        "at least 1",
    ),
    (OptimizerConfig, {"beta1": 1.0}, "optimizer.beta1 = 1.0", "less than 1"),
    (
        OptimizerConfig,
        {"weight_decay": -0.1},
        "optimizer.weight_decay = -0.1",
        "greater than or equal to 0",
    ),
    (
        OptimizerConfig,
        {"weight_decay": float("inf")},
        "optimizer.weight_decay = inf",
        "equal to 1000",
    ),
    (OptimizerConfig, {"clip_norm": 0.0}, "optimizer.clip_norm = 0.0", "greater than 0"),
    (DataConfig, {"seq_len": 0}, "data.seq_len = 0", "greater than 0"),
    (DataConfig, {"validation_percent": 100}, "data.validation_percent = 100", "less than 100"),
    (DataConfig, {"tokenizer": 3}, "data.tokenizer = 3", "valid string"),
    (DataConfig, {"sources": 3}, "data.sources = 3", "dictionary"),
    (DataConfig, {"temperature": 0.0}, "data.temperature = 0.0", "greater than or equal to 0.1"),
    (DataConfig, {"verify": "often"}, "data.verify = 'often'", "'bytes' or 'sizes'"),
    (DataConfig, {"workers": -1}, "data.workers = -1", "greater than or equal to 0"),
    (SourceConfig, {"weight": 0}, "source.weight = 0", "greater than 0"),
    (SourceConfig, {"weight": -0.5}, "source.weight = -0.5", "greater than 0"),
    (SourceConfig, {"weight": float("nan")}, "source.weight = nan", "greater than 0"),
    (SourceConfig, {"weight": "much"}, "source.weight = 'much'", "valid"),
    (SourceConfig, {"subset": 1.5}, "source.subset = 1.5", "less than or equal to 1"),
    (SourceConfig, {"max_epochs": 0.0}, "source.max_epochs = 0.0", "greater than 0"),
    (
        PrepareConfig,
        {"duplicates": "some"},
        "prepare.duplicates = 'some'",
        "'near', 'exact' or 'keep'",
    ),
    (PrepareConfig, {"similarity": 1.0}, "prepare.similarity = 1.0", "less than 1"),
    (PrepareConfig, {"contaminated": "burn"}, "prepare.contaminated = 'burn'", "'drop' or 'cut'"),
    (PrepareConfig, {"shard_megabytes": 0}, "prepare.shard_megabytes = 0", "greater than 0"),
    (SourceConfig, {"languages": "en"}, "source.languages = 'en'", "should be a list"),
    (TrainConfig, {"steps": "10"}, "train.steps = '10'", "valid integer"),
    (TrainConfig, {"device": "tpu"}, "train.device = 'tpu'", "'auto', 'cpu' or 'cuda'"),
    (
        TrainConfig,
        {"start_from": "runs/a/step-1", "init_from": "runs/b"},
        "train.init_from = 'runs/b'",
        "excludes train.start_from = 'runs/a/step-1'; leave out",
    ),
    (TrainConfig, {"prompts": "once"}, "train.prompts = 'once'", "should be a list"),
    (RunConfig, {"model": 3}, "run.model = 3", "ModelConfig"),
    (
        RunConfig,
        {"data": DataConfig(seq_len=8192)},
        "data.seq_len = 8192",
        "max_position_embeddings = 4096",
    ),
    (
        RunConfig,
        {"train": TrainConfig(global_batch_tokens=20_000)},
        "train.global_batch_tokens = 20000",
        "the nearest is 16384",
    ),
    (
        RunConfig,
        {"train": TrainConfig(global_batch_tokens=100)},
        "train.global_batch_tokens = 100",
        "the nearest is 8192",
    ),
]


@pytest.mark.parametrize(
    ("section", "values", "place", "remedy"), WRONG_VALUES, ids=[case[2] for case in WRONG_VALUES]
)
def test_wrong_values(
    section: Callable[..., Any], values: dict[str, Any], place: str, remedy: str
) -> None:
    message = complaint(lambda: section(**values))
    assert message.startswith(f"{place}: ")
    assert remedy in message.removeprefix(place)


WRONG_TABLES: list[tuple[dict[str, Any], str, str]] = [
    ({"modal": {}}, "[modal]", "did you mean 'model'"),
    ({"train": 3}, "train = 3", "must be a table"),
    ({"train": {"step": 3}}, "train.step = 3", "did you mean 'steps'"),
    ({"data": {"sources": {"web": 3}}}, "data.sources.web = 3", "must be a table"),
    (
        {"data": {"sources": {"web": {"weights": 3}}}},
        "data.sources.web.weights = 3",
        "did you mean 'weight'",
    ),
    (
        {"data": {"sources": {"web": {"weight": -3}}}},
        "data.sources.web.weight = -3",
        "greater than 0",
    ),
    ({"data": {"sources": {"a\\1": {"weight": 0}}}}, "data.sources.a\\1.weight = 0", "greater"),
    ({"data": {"stages": 3}}, "data.stages = 3", "should be a list"),
    ({"data": {"stages": [3]}}, "data.stages[0] = 3", "must be a table"),
    (
        {"data": {"stages": [{"start_tokens": 4096}]}},
        "data.stages[0].weights = nothing",
        "must be given",
    ),
    (
        {"data": {"stages": [{"start_tokens": 5000, "weights": {}}]}},
        "data.stages[0].start_tokens = 5000",
        "the nearest is 4096",
    ),
    (
        {"data": {"temperature": 2.0, "stages": [{"start_tokens": 4096, "weights": {"a": 1}}]}},
        "data.temperature = 2.0",
        "leave out data.stages",
    ),
    ({"data": {"seed": 1, "tokeniser": "x"}}, "data.tokeniser = 'x'", "did you mean 'tokenizer'"),
    ({"base": "tiny"}, "[base]", "unknown table"),
    (
        {"data": {"sources": {"web": {"languages": "de"}}}},
        "data.sources.web.languages = 'de'",
        "should be a list",
    ),
]


@pytest.mark.parametrize(
    ("tables", "place", "remedy"), WRONG_TABLES, ids=[case[1] for case in WRONG_TABLES]
)
def test_wrong_tables(tables: dict[str, Any], place: str, remedy: str) -> None:
    message = complaint(lambda: RunConfig.from_dict(tables))
    assert message.startswith(f"{place}: ")
    assert remedy in message


def test_unknown_preset_names_the_known_ones() -> None:
    for call in (
        lambda: RunConfig.preset("tony"),
        lambda: ModelConfig.preset("tony"),
        lambda: RunConfig.load("tony"),
    ):
        message = complaint(call)
        assert message.startswith("preset = 'tony'")
        assert ", ".join(preset_names()) in message


def test_a_preset_is_no_way_out_of_its_folder() -> None:
    assert "unknown" in complaint(lambda: RunConfig.preset("../presets/tiny"))


def test_errors_are_value_errors_that_a_user_can_mend() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, ValueError)
    assert (
        str(MissingExtraError("datasets", "hf", "reading x"))
        == "reading x needs the package 'datasets': pip install 'slm2-minimal[hf]'"
    )


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


# Numbers that cannot be, whole and in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--train.steps=1.5e0"], "train.steps = 1.5: input should be a valid integer"),
        (["--train.steps=1e400"], "train.steps = inf: input should be a valid integer"),
        (["--train.steps=1e30"], "train.steps = 1000000000000000019.*: .*less than 100000000"),
        (["--train.steps=true"], "train.steps = True: input should be a valid integer"),
        (["--schedule.warmup_steps=1e3"], "schedule.warmup_steps = 1000.0: a decimal is a share"),
        (["--train.steps", "9" * 5000], "train.steps = '9999.*valid integer"),
        (["--train.steps", "0x" + "f" * 5000], "train.steps = a number of thousands of digits: "),
        (["--train.steps", "99999999999999999999"], "train.steps = 9+: .*less than 100000000"),
        (["--train.seed", str(2**64)], "train.seed = 1.*less than or equal to 9007199254740992"),
        (["--parallel.compile=yes"], "parallel.compile = 'yes': .*valid boolean"),
        (["--parallel.compile=1.0"], "parallel.compile = 1.0: .*valid boolean"),
        (["--optimizer.eps=1e-46"], "optimizer.eps = 1e-46: .*greater than or equal to"),
        (["--optimizer.weight_decay=1e30"], "optimizer.weight_decay = 1e.30: .*equal to 1000"),
        (["--model.num_hidden_layers=10000000"], "model.num_hidden_layers = 10000000: .*1000"),
        (["--model.hidden_size=1048576"], "model.hidden_size = 1048576: .*any machine"),
        (["--model.partial_rotary_factor=0.01"], "model.partial_rotary_factor = 0.01: gives 0 "),
        (["--prepare.permutations=100000"], "prepare.permutations = 100000: .*equal to 1024"),
        (["--train.steps", "3\n[train]\nseed = 1"], r"train.steps = '3.*valid integer"),
        (["--train.log_every", "[" * 5000], "train.log_every = '.*valid integer"),
        (["--train.output_dir", "\n" + "x" * 10_000 + "\0"], "train.output_dir = .* NUL"),
    ],
)  # fmt: skip
def test_numbers_and_texts_that_cannot_be(overrides: list[str], message: str) -> None:
    found = complaint(lambda: RunConfig.load("tiny", parse_overrides(overrides)))
    assert re.match(message, found), found
    assert len(found) < 1000


@pytest.mark.parametrize(
    ("text", "value"), [("1e3", 1000), ("5.0", 5), ("5e0", 5), ("1_000.0", 1000), ("0.0", 0)]
)
def test_integers_may_be_written_as_decimals(text: str, value: int, tmp_path: Path) -> None:
    """On the command line, in a file and in a program; also where None is possible, and
    beside other keys that are wrong.
    """
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "tiny"\n[train]\nseed = {text}\nprofile_step = {text}\n')
    overrides = parse_overrides([f"--train.seed={text}", "--train.profile_step", text])
    for run in (RunConfig.load(path), RunConfig.load("tiny", overrides)):
        assert (run.train.seed, run.train.profile_step) == (value, value)
        assert type(run.train.seed) is int
    assert TrainConfig(seed=float(value)).seed == value  # type: ignore[arg-type]
    wrong = complaint(lambda: TrainConfig(seed=5.0, steps=0))  # type: ignore[arg-type]
    assert wrong.startswith("train.steps = 0: ")


def test_a_decimal_weight_stays_a_share() -> None:
    assert type(SourceConfig(weight=1.0).weight) is float


@pytest.mark.parametrize("text", ["True", "true", "False", "false"])
def test_truth_as_python_and_as_toml_write_it(text: str) -> None:
    words = [f"--parallel.compile={text}", "--train.wandb", text]
    run = RunConfig.load("tiny", parse_overrides(words))
    assert run.parallel.compile is (text.lower() == "true")
    assert run.train.wandb == text, "a key that holds text takes it as typed"


def test_two_stages_with_one_start() -> None:
    stage = {"start_tokens": 256, "weights": {"en": 1}}
    message = complaint(lambda: RunConfig.load("tiny", {"data.stages": [stage, stage]}))
    assert message.startswith("data.stages[1].start_tokens = 256: another stage begins there")


def test_a_folder_may_be_called_like_a_number_or_a_date() -> None:
    words = [
        "--train.output_dir",
        "2024-05-01",
        "--data.sources.en.path=2024",
        "--data.prepared=1e3",
    ]
    run = RunConfig.load("tiny", parse_overrides(words))
    assert run.train.output_dir == "2024-05-01"
    assert (run.data.sources["en"].path, run.data.prepared) == ("2024", "1e3")
    message = complaint(lambda: RunConfig.load("tiny", {"train.output_dir": 2024}))
    assert message.endswith("valid string; put it in quotes")


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
