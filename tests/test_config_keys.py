"""What every key means: said once, under its field, and shown by --help."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from slm2_minimal.config import (
    DataConfig,
    RunConfig,
    SourceConfig,
    StageConfig,
    parse_overrides,
    preset_names,
    read_toml,
)
from slm2_minimal.config.keys import WIDTH, manual, toml_value
from slm2_minimal.config.section import Section, Table

SECTIONS: list[type[Section]] = [*Table.__subclasses__(), SourceConfig, StageConfig]
KEYS = [(section, key) for section in SECTIONS for key in section.fields()]


def test_every_table_of_a_run_is_there() -> None:
    assert {table.table_name for table in Table.__subclasses__()} == set(RunConfig.fields())


@pytest.mark.parametrize(
    ("section", "key"), KEYS, ids=[f"{section.table_name}.{key}" for section, key in KEYS]
)
def test_every_key_has_a_meaning_of_one_paragraph(section: type[Section], key: str) -> None:
    meaning = section.meanings()[key]
    assert meaning.endswith(".")
    assert "\n" not in meaning
    assert 10 < len(meaning) < 200
    assert "  " not in meaning


@pytest.mark.parametrize("section", SECTIONS)
def test_no_meaning_without_a_key(section: type[Section]) -> None:
    assert list(section.meanings()) == section.fields()


def options(text: str) -> list[str]:
    """The options of a manual as they would be typed."""
    lines = [line for line in text.splitlines() if line.startswith("  --")]
    return [line.strip().split("  ")[0] for line in lines if ".NAME." not in line]


@pytest.mark.parametrize("name", ["", *preset_names()])
def test_the_manual_can_be_typed_as_it_stands(name: str, tmp_path: Path) -> None:
    """All keys with their values, laid over an empty file, make the configuration."""
    run = RunConfig.preset(name) if name else RunConfig()
    lines = options(manual(run))
    assert lines.count("--train.wandb (not set)") == 1
    words = [word for line in lines if "(not set)" not in line for word in shlex.split(line)]
    (tmp_path / "empty.toml").write_text("")
    assert RunConfig.load(tmp_path / "empty.toml", parse_overrides(words)) == run


def test_the_manual_has_every_key_and_fits_the_terminal() -> None:
    text = manual(RunConfig())
    for table in Table.__subclasses__():
        assert f"\n[{table.table_name}]\n" in f"\n{text}"
        for key in table.fields():
            assert text.count(f"  --{table.table_name}.{key} ") == 1
    for key in SourceConfig.fields():
        assert text.count(f"  --data.sources.NAME.{key} ") == 1
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "One of auto, float32, bfloat16." in " ".join(text.split())


def test_a_long_value_has_its_meaning_below() -> None:
    train = RunConfig().train.replace(prompts=("x" * 50,))
    lines = manual(RunConfig(train=train)).splitlines()
    where = lines.index(f"""  --train.prompts '["{"x" * 50}"]'""")
    assert lines[where + 1].strip() == "What the model goes on from at the end of the run."


STAGES = (StageConfig(start_tokens=4096, weights={"a": 1, "b c": 0.5}),)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (1e-5, "1e-05"),
        (float("inf"), "inf"),
        (True, "true"),
        ('say "ä"\n', '"say \\"ä\\"\\n"'),
        (("a", "b"), '["a", "b"]'),
        ({"a-b": 1, "b c": [2.5]}, '{a-b = 1, "b c" = [2.5]}'),
        (SourceConfig(), "{}"),
        (SourceConfig(weight=4, languages=("en",)), '{weight = 4, languages = ["en"]}'),
        (STAGES, '[{start_tokens = 4096, weights = {a = 1, "b c" = 0.5}}]'),
    ],
)
def test_values_as_toml_writes_them(value: Any, text: str, tmp_path: Path) -> None:
    assert toml_value(value) == text
    (tmp_path / "x.toml").write_text(f"value = {text}")
    read = read_toml(tmp_path / "x.toml")["value"]
    if value == STAGES:
        assert DataConfig(stages=read).stages == STAGES
