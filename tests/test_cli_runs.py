"""The command line as a user works with it: from training to text, and back from a
checkpoint.
"""

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from slm2_minimal import generate, load_corpus, load_tokenizer
from slm2_minimal.config import RunConfig
from slm2_minimal.distributed.pretrained import load_model
from slm2_minimal.text.sentence_piece import train_sentencepiece
from slm2_minimal.train.trainer import Trainer
from tests.commands import Run, says, write_config


def test_train_and_go_on(slm2: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    code, out, err = slm2("train", path)
    assert (code, err) == (0, "")
    assert "step 2/2" in out
    assert "going on" not in out
    assert "best checkpoint: step 2" in out
    code, out, _ = slm2("train", path, "--train.steps", "3")
    assert code == 0
    assert "going on after step 2" in out
    assert "step 3/3" in out
    assert sorted(p.name for p in (tmp_path / "run").glob("step-*")) == [
        "step-00000002",
        "step-00000003",
    ]
    says(
        slm2("train", path, "--data.seed", "5"),
        2,
        "data.seed = 5",
        "has 1234",
        "--train.output_dir",
    )


def test_check_and_launch_start_nothing(
    slm2: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is that of as many processes as are named, or as there are; a dry run
    also writes the scripts, where it is told to.
    """
    path, words = write_config(tmp_path), ["--train.steps", "3"]
    code, one, err = slm2("train", path, *words, "--check")
    assert (code, err) == (0, "")
    assert one.startswith("processes   1 = 1 node of 1; single\nbatch       256 tokens = ")
    assert (
        slm2("train", path, *words, "--check", "--gpus", "2", "--gpu", "a100-40gb")[1].count(
            " of 40.0 on a100-40gb (planned)\n"
        )
        == 1
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    two = slm2("train", path, *words, "--check")[1]
    assert two.startswith("processes   2 = 1 node of 2; zero1\n")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "letters.jsonl", path]
    code, out, err = slm2(
        "launch",
        path,
        *words,
        "--gpus",
        "2",
        "--dry-run",
        "--out",
        tmp_path / "out",
        "--sbatch",
        "qos=high",
        "--time",
        "1:00",
    )
    assert (code, err) == (0, "")
    assert out == f"{two}nothing was started; to do it: sbatch {tmp_path}/out/slurm.sh\n"
    assert (
        (tmp_path / "out" / "torchrun.sh")
        .read_text()
        .endswith(f"-m slm2_minimal train {path} --train.steps 3\n")
    )
    text = (tmp_path / "out" / "slurm.sh").read_text()
    assert "#SBATCH --time=1:00\n" in text
    assert "#SBATCH --qos=high\n" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_launch_two_processes_here(tmp_path: Path) -> None:
    """torchrun takes the place of the command, which so ends with its exit code."""
    slm2 = Path(sys.executable).parent / "slm2"
    words = [
        slm2,
        "launch",
        write_config(tmp_path),
        "--gpus",
        "2",
        "--train.global_batch_tokens",
        "512",
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("processes   2 = 1 node of 2; zero1\n")
    assert done.stdout.count("step 2/2") == 1
    assert (tmp_path / "run" / "step-00000002" / "state.json").exists()


@pytest.mark.parametrize(("steps", "code"), [("1", 0), ("0", 2)])
def test_train_as_a_module(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str, code: int
) -> None:
    """`python -m slm2_minimal train CONFIG ...`, the form that launchers want."""
    words = [
        "python",
        "train",
        str(config),
        f"--train.steps={steps}",
        "--train.output_dir",
        str(tmp_path / "run"),
    ]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("slm2_minimal", run_name="__main__", alter_sys=True)
    assert stop.value.code == code
    assert (tmp_path / "run" / "step-00000001" / "state.json").exists() == (code == 0)


def test_generate(slm2: Run, run_folder: Path) -> None:
    words = ("generate", run_folder, "--prompt", "Dear friend", "--max-new-tokens", "12")
    code, greedy, err = slm2(*words, "--temperature", "0")
    assert (code, err) == (0, "")
    assert greedy.startswith("Dear friend")
    assert len(greedy) > len("Dear friend\n")
    assert greedy.endswith("\n")
    assert slm2(*words, "--temperature", "0")[1] == greedy
    assert slm2(*words, "--top-k", "1")[1] == greedy
    drawn = {seed: slm2(*words, "--temperature", "1", "--seed", seed)[1] for seed in (1, 2)}
    assert slm2(*words, "--temperature", "1", "--seed", "1")[1] == drawn[1] != drawn[2]


def test_generate_takes_a_checkpoint_and_a_folder_for_transformers(
    slm2: Run, run_folder: Path, tmp_path: Path
) -> None:
    words = ("--prompt", "Dear", "--max-new-tokens", "8", "--temperature", "0")
    expected = slm2("generate", run_folder, *words)[1]
    (saved,) = run_folder.glob("step-*")
    assert slm2("generate", saved, *words) == (0, expected, "")
    out = tmp_path / "out"
    assert slm2("export", run_folder, out) == (
        0,
        f"{out}: 76,064 parameters in float32; tokenizer tiny\n",
        "",
    )
    assert slm2("generate", out, *words) == (0, expected, "")
    assert slm2("generate", out, "--tokenizer", "tiny", *words) == (0, expected, "")
    for path in out.glob("tokenizer*"):
        path.unlink()
    says(slm2("generate", out, *words), 2, "has none, and its 1024 ids are not arcade100k's")


def test_export(slm2: Run, run_folder: Path, tmp_path: Path) -> None:
    """The weights of the checkpoint, in a format that `transformers` loads; in bfloat16
    rounded to it. Nothing is written over.
    """
    (saved,) = run_folder.glob("step-*")
    weights = load_model(str(run_folder))[0].state_dict()
    types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    for name, dtype in types.items():
        out = tmp_path / name
        assert slm2("export", saved, out, "--type", name)[0] == 0
        written = AutoModelForCausalLM.from_pretrained(out, dtype=dtype).state_dict()
        assert written.keys() == weights.keys()
        assert all(torch.equal(written[name], weight.to(dtype)) for name, weight in weights.items())
    before = (out / "model.safetensors").read_bytes()
    says(
        slm2("export", saved, out),
        2,
        f"out = {str(out)!r}: is there already; name a new folder, or an empty one",
    )
    assert (out / "model.safetensors").read_bytes() == before
    assert slm2("export", out, tmp_path / "again")[:2] == (
        0,
        f"{tmp_path}/again: 76,064 parameters in float32; tokenizer {out.name}\n",
    )


def test_generate_without_a_prompt(slm2: Run, run_folder: Path) -> None:
    code, out, err = slm2("generate", run_folder, "--max-new-tokens", "8", "--seed", "3")
    assert (code, err) == (0, "")
    assert out != "\n"


def test_generate_stops_at_the_end_of_text(
    slm2: Run, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a vocabulary whose end of text is the id that greedy decoding draws first,
    nothing follows the prompt.
    """
    stopping = load_tokenizer("tiny")
    model, _ = load_model(str(run_folder))
    prompt = torch.tensor([stopping.encode("Dear")])
    stopping.eos_token_id = int(generate(model, prompt, 1, temperature=0)[0, -1])
    words = (
        "generate",
        run_folder,
        "--prompt",
        "Dear",
        "--temperature",
        "0",
        "--max-new-tokens",
        "8",
    )
    assert len(slm2(*words)[1]) > len("Dear\n")
    monkeypatch.setattr("slm2_minimal.distributed.pretrained.load_tokenizer", lambda name: stopping)
    assert slm2(*words)[1] == "Dear\n"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--max-new-tokens", "100"], ["max_new_tokens = 100", "context of 64", "ask for at most"]),
        (["--temperature", "-1"], ["temperature = -1.0", "0 is greedy"]),
        (["--top-p", "1.5"], ["top_p = 1.5"]),
        (["--top-k", "0"], ["top_k = 0"]),
        (
            ["--tokenizer", "arcade100k"],
            ["tokenizer = 'arcade100k': has 100289 ids, the model 1024"],
        ),
        (["--tokenizer", "nowhere.model"], ["tokenizer = 'nowhere.model': No such file"]),
    ],
    ids=" ".join,
)
def test_generate_with_what_cannot_be(
    slm2: Run, run_folder: Path, words: list[str], parts: list[str]
) -> None:
    result = slm2("generate", run_folder, "--prompt", "Dear", "--max-new-tokens", "8", *words)
    says(result, 2, *parts)
    if "--max-new-tokens" not in words:
        assert result[1] == ""  # nothing is printed before it is refused


def test_generate_from_a_damaged_run(slm2: Run, tmp_path: Path) -> None:
    Trainer.from_config(RunConfig.load(write_config(tmp_path))).run()
    (weights,) = (tmp_path / "run" / "step-00000002").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    says(slm2("generate", tmp_path / "run"), 2, f"{weights.name} is missing or altered")
    says(
        slm2("export", tmp_path / "run", tmp_path / "out"),
        2,
        f"{weights.name} is missing or altered",
    )
    assert not (tmp_path / "out").exists()
    says(slm2("generate", tmp_path), 2, "config.json")


def test_a_terminal_without_a_character_shows_its_escape(config: Path) -> None:
    """Also one that takes no bytes that are no text."""
    model = config.parent / "run"
    for encoding, prompt, shown in (
        ("ascii", "più", b"pi\\xf9"),
        ("latin-1", "\u65e5", b"\\u65e5"),
        ("utf-8:strict", b"caf\xe9", b"caf\\udce9"),
    ):
        words = [sys.executable, "-m", "slm2_minimal", "generate", model, "--prompt", prompt]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(
            [*words, "--max-new-tokens", "1"], env=environment, capture_output=True, timeout=120
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(shown)


def test_another_vocabulary_of_the_same_size(slm2: Run, run_folder: Path, tmp_path: Path) -> None:
    """Its text would be gibberish: the run knows which one it was trained with."""
    texts = [document.text for document in load_corpus(languages=["de"])]
    other = tmp_path / "other.model"
    train_sentencepiece(texts, other, 1024)
    result = slm2("generate", run_folder, "--tokenizer", other)
    says(result, 2, "tokenizer = 'other': ", "was trained with another vocabulary")

    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    (state,) = copy.glob("step-*/state.json")
    content = json.loads(state.read_text())
    content["config"]["data"]["tokenizer"] = str(other)
    content.pop("digest", None)
    content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    state.write_text(json.dumps(content))
    for words in (("generate", copy), ("export", copy, tmp_path / "out")):
        says(slm2(*words), 2, "was trained with another vocabulary")
    assert not (tmp_path / "out").exists()
    other.unlink()  # where it is not to be had, the weights still are
    assert slm2("export", copy, tmp_path / "out")[0] == 0
