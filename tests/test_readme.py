"""The README as typed: its commands in their order in one folder, its Python, and the
files that it names.
"""

import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from slm2_minimal.cli import main
from slm2_minimal.config import RunConfig, preset_names
from slm2_minimal.text.corpus import load_corpus
from slm2_minimal.text.documents import SUFFIXES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)

# The same runs with a model and batches that take seconds
SMALL = (
    "--model.hidden_size 32 --model.intermediate_size 64 --model.num_hidden_layers 1"
    " --model.num_attention_heads 2 --model.num_key_value_heads 2 --data.seq_len 32"
    " --train.micro_batch_size 2 --train.sample_tokens 2 --train.dtype float32 --train.device cpu"
)
TINY = f"{SMALL} --train.global_batch_tokens 128"
NODE = f"{SMALL} --train.global_batch_tokens 8192 --train.steps 2 --train.dtype bfloat16"
# What is not run as it stands: how it begins, what is added, and why
ADDED = [
    ("slm2 train tiny-sft", f"{TINY} --data.seq_len 64 --train.steps 20", "minutes"),
    ("slm2 train tiny", TINY, "minutes"),
    ("slm2 train mine.toml", TINY, "minutes"),
    ("slm2 launch laptop", TINY, "minutes"),
    ("slm2 train node.toml", NODE, "31B tokens of text"),
    ("slm2 launch node.toml --gpus 8 ", f"--dry-run {NODE}", "8 GPUs"),
    ("slm2 launch node.toml", NODE, "31B tokens of text"),
]
LOOKED_AT = {
    "make book": "takes minutes; .ci/run does it",
    "make test": "would start this test",
    "make train": "installs packages; slm2 train tiny follows",
    "source .venv/bin/activate": "the environment of this test is there",
}


def commands(block: str) -> list[str]:
    """The lines of a block, joined where they go on, without their comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#.*", "", line).strip() for line in lines) if line]


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the README takes for granted: texts, a quiz, a site's script."""
    texts = [document.text for document in load_corpus(languages=["en", "de", "nl"])]
    for folder in ("my_texts", "crawl"):
        (tmp_path / folder).mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "my_texts" / f"{number}.txt").write_text(text, encoding="utf-8")
    crawl = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "crawl" / "0.jsonl").write_text(crawl)
    books = [document.text for document in load_corpus(languages=["fr", "it"])]
    pyarrow.parquet.write_table(pyarrow.table({"content": books}), tmp_path / "books.parquet")
    (tmp_path / "quiz.jsonl").write_text('{"text": "Which bird builds no nest of its own?"}\n')
    talk = {"query": "Where is the train?", "response": "It is in Berlin."}
    (tmp_path / "talks.jsonl").write_text(
        "".join(json.dumps(talk | {"id": i}) + "\n" for i in range(40))
    )
    (tmp_path / "prompts.txt").write_text("Der Zug kam\nLa lettre\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("Where is the train?\n"))
    (tmp_path / "site.sh").write_text("module() { :; }\nmodule load cuda\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
def test_every_block_in_order(sandbox: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for language, block in BLOCKS:
        if language == "toml":
            name = block.partition("\n")[0].removeprefix("# ")
            Path(name).write_text(block, encoding="utf-8")
            RunConfig.load(name)
        elif language == "python":
            exec(compile(block, "README.md", "exec"), {})
        else:
            for command in commands(block):
                code, said = run(command), capfd.readouterr()
                assert code == 0, f"{command}: {said.err}"
    assert {path.name for path in Path().iterdir() if path.is_dir()} == {
        "crawl", "exported", "my_texts", "prepared", "runs", "small",
    }  # fmt: skip


def run(command: str) -> int:
    """The exit code of one command; those of slm2 run in this process."""
    if command in LOOKED_AT:
        tool, _, target = command.partition(" ")
        looked = ["make", "-n", "-C", str(ROOT), target]
        return subprocess.run(looked, check=False).returncode if tool == "make" else 0
    added = next((more for start, more, _ in ADDED if command.startswith(start)), "")
    program, *words = shlex.split(f"{command} {added}")
    assert program == "slm2", f"{command}: not known to this test"
    if words[0] == "launch" and "--dry-run" not in words:  # it would take this one's place
        return subprocess.run(
            [sys.executable, "-m", "slm2_minimal", *words], check=False
        ).returncode
    try:
        return main(words)
    except SystemExit as end:
        return int(end.code or 0)


def test_what_is_not_run_as_it_stands_is_in_the_readme() -> None:
    typed = [command for language, block in BLOCKS if not language for command in commands(block)]
    for start in (*LOOKED_AT, *(start for start, _, _ in ADDED)):
        assert any(command.startswith(start) for command in typed), start


def test_the_files_and_presets_that_it_names_are_there() -> None:
    modules = re.findall(r"`([\w/]+\.py)`", README)
    assert len(modules) > 20
    for module in modules:
        assert (ROOT / "slm2_minimal" / module).exists() or (ROOT / module).exists(), module
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    rooms = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", README, re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", " ".join(rooms))) | {"report"}
    folders = {path.name for path in (ROOT / "slm2_minimal").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} <= named
    assert set(re.findall(r"^\| `((?:laptop|stablelm)[\w-]*)` \|", README, re.MULTILINE)) == set(
        preset_names()
    ) - {"tiny", "tiny-sft"}


def test_it_names_every_ending_that_is_read() -> None:
    [listed] = re.findall(r"Point a source at files \((.*?)\)", README, re.DOTALL)
    assert set(re.findall(r"`(\.[\w.]+)`", listed)) == set(SUFFIXES)


def test_what_its_commands_write_is_ignored_by_git() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {"runs/", "prepared/", "exported/"} <= set(ignored)
