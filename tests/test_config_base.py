"""A file that stands on another: what it replaces, what it keeps, and bases that cannot
be.
"""

import os
from pathlib import Path

import pytest

from slm2_minimal.config import PRESET_DIR, RunConfig, SourceConfig, TrainConfig, preset_names
from tests.complaints import config_error as complaint


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_key_replaces_the_bases_and_the_rest_stays(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", 'base = "tiny"\n[train]\nsteps = 7\n')
    tiny = RunConfig.preset("tiny").to_dict()
    tiny["train"]["steps"] = 7
    tiny["schedule"] |= {
        "warmup_steps": 1,
        "decay_steps": 8,
        "cooldown_start": 6,
        "cooldown_steps": 1,
    }
    assert RunConfig.load(path).to_dict() == tiny
    assert RunConfig.load(path, {"train.steps": 8, "data.seed": 1}).train.steps == 8


def test_a_base_alone_is_the_base(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", 'base = "laptop"\n')
    assert RunConfig.load(path) == RunConfig.preset("laptop")


def test_sources_replace_the_bases_as_a_whole(tmp_path: Path) -> None:
    """The names are the mix's own, and its weights have one sum. Overrides on the
    command line add to it.
    """
    text = 'base = "tiny"\n[data.sources]\nweb = { path = "texts" }\n'
    path = write(tmp_path / "run.toml", text)
    web = SourceConfig(path="texts")
    assert RunConfig.load(path).data.sources == {"web": web}
    more = RunConfig.load(path, {"data.sources.code.languages": ["code"]})
    assert more.data.sources == {"web": web, "code": SourceConfig(languages=("code",))}
    assert RunConfig.load(path).data.seq_len == 256


def test_lists_and_benchmarks_are_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", "[prepare.benchmarks]\none = 'x'\n[train]\nprompts = ['a', 'b']\n")
    text = 'base = "a.toml"\n[prepare.benchmarks]\ntwo = "y"\n[train]\nprompts = ["c"]\n'
    run = RunConfig.load(write(tmp_path / "b.toml", text))
    assert run.prepare.benchmarks == {"two": "y"}
    assert run.train.prompts == ("c",)


def test_a_base_has_a_base_and_paths_start_at_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest file that gives a key decides it."""
    write(tmp_path / "deep" / "first.toml", 'base = "tiny"\n[train]\nsteps = 1\nseed = 1\n')
    write(tmp_path / "deep" / "second.toml", 'base = "first.toml"\n[train]\nsteps = 2\nseed = 2\n')
    third = write(tmp_path / "third.toml", 'base = "deep/second.toml"\n[train]\nsteps = 3\n')
    run = RunConfig.load(third)
    assert (run.train.steps, run.train.seed, run.train.log_every) == (3, 2, 25)
    absolute = f"base = '{tmp_path / 'deep' / 'second.toml'}'\n"
    assert RunConfig.load(write(tmp_path / "x" / "y.toml", absolute)).train.steps == 2
    monkeypatch.chdir(tmp_path)
    assert RunConfig.load("third.toml") == run


def test_two_files_may_stand_on_one(tmp_path: Path) -> None:
    """The same base twice in different chains is no circle."""
    write(tmp_path / "a.toml", "[train]\nsteps = 5\n")
    for name in ("b", "c"):
        path = write(tmp_path / f"{name}.toml", 'base = "a.toml"\n')
        assert RunConfig.load(path).train == TrainConfig(steps=5)


@pytest.mark.parametrize(
    ("base", "remedy"),
    [
        ("'tony'", f"choose one of {', '.join(preset_names())}, or give the path of a .toml"),
        ("'nowhere.toml'", "choose one of"),
        ("'tiny.json'", "choose one of"),
        ("'folder.toml'", "choose one of"),
        ("''", "choose one of"),
        ("3", "choose one of"),
        ("['tiny']", "choose one of"),
    ],
)
def test_a_base_that_is_not_there(tmp_path: Path, base: str, remedy: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    path = write(tmp_path / "run.toml", f"base = {base}\n")
    message = complaint(lambda: RunConfig.load(path))
    assert message.startswith(f"base = {base}: named in {str(path)!r}, but not there; ")
    assert remedy in message


def test_a_base_table_is_no_base(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", "[base]\nsteps = 3\n")
    assert complaint(lambda: RunConfig.load(path)).startswith("base = {'steps': 3}: ")


def test_a_broken_base_names_itself(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", "[train\n")
    path = write(tmp_path / "b.toml", 'base = "a.toml"\n')
    message = complaint(lambda: RunConfig.load(path))
    assert message.startswith(f"config = '{tmp_path / 'a.toml'}': not valid TOML (")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_circles(tmp_path: Path, length: int) -> None:
    for number in range(length):
        text = f'base = "{(number + 1) % length}.toml"\n'
        write(tmp_path / f"{number}.toml", text)
    message = complaint(lambda: RunConfig.load(tmp_path / "0.toml"))
    last = str(tmp_path / f"{length - 1}.toml")
    assert message.startswith(f"base = '0.toml': leads in {last!r} back to where it came from; ")


def test_a_circle_by_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.toml", 'base = "b.toml"\n')
    os.symlink(path, tmp_path / "b.toml")
    assert "back to where it came from" in complaint(lambda: RunConfig.load(path))


def test_wrong_values_keep_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "run.toml", 'base = "tiny"\n[train]\nstep = 3\n')
    assert complaint(lambda: RunConfig.load(path)).startswith("train.step = 3: unknown key; ")
    path.write_text('base = "tiny"\ntrain = 3\n')
    assert complaint(lambda: RunConfig.load(path)).startswith("train = 3: must be a table")
    path.write_text('base = "tiny"\n[trail]\n')
    assert complaint(lambda: RunConfig.load(path)).startswith("[trail]: unknown table")


def test_a_file_of_a_presets_name_does_not_hide_it(tmp_path: Path) -> None:
    """A preset is named by its stem, a file by its suffix."""
    write(tmp_path / "tiny.toml", "[train]\nsteps = 5\n")
    stem = write(tmp_path / "a.toml", 'base = "tiny"\n')
    file = write(tmp_path / "b.toml", 'base = "tiny.toml"\n')
    assert RunConfig.load(stem) == RunConfig.preset("tiny")
    assert RunConfig.load(file).train == TrainConfig(steps=5)
    assert (PRESET_DIR / "tiny.toml").is_file()
