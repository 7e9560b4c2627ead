"""What a key may hold, and one line for everything that it may not."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
)
from tests.complaints import config_error as complaint

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
