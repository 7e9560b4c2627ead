"""The command line as a user meets it: exit codes, one line on stderr, help, and a run
from training to text.
"""

import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from slm2_minimal import generate, load_corpus, load_tokenizer
from slm2_minimal.cli import main
from slm2_minimal.config import RunConfig
from slm2_minimal.config.keys import manual
from slm2_minimal.distributed.pretrained import load_model
from slm2_minimal.text.sentence_piece import train_sentencepiece
from slm2_minimal.train.trainer import Trainer

ROOT = Path(__file__).parent.parent
CONFIG = """
[model]
vocab_size = 1024
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64
bos_token_id = 0
eos_token_id = 0

[schedule]
kind = "constant"
warmup_steps = 0

[data]
tokenizer = "tiny"
seq_len = 32
validation_percent = 20
[data.sources]
letters = { path = "SOURCE" }

[train]
steps = 2
global_batch_tokens = 256
micro_batch_size = 4
device = "cpu"
dtype = "float32"
log_every = 1
output_dir = "OUTPUT"
prompts = ["Dear"]
sample_tokens = 4
"""

Run = Callable[..., tuple[int, str, str]]


def write_config(folder: Path) -> Path:
    """A run of two steps on forty letters, everything under `folder`."""
    records = [
        {"id": f"letter-{i}", "language": "en", "text": f"Dear friend {i}, it rained all week."}
        for i in range(40)
    ]
    (folder / "letters.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    path = folder / "small.toml"
    path.write_text(
        CONFIG.replace("SOURCE", str(folder / "letters.jsonl")).replace(
            "OUTPUT", str(folder / "run")
        )
    )
    return path


@pytest.fixture
def slm2(capfd: pytest.CaptureFixture[str]) -> Run:
    """`slm2(*words)` -> (exit code, stdout, stderr), in this process. File descriptors
    are read, so that no library goes unheard.
    """

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse ends --help and wrong arguments itself
            code = int(stop.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TOML file of a run that has been made."""
    path = write_config(tmp_path_factory.mktemp("cli"))
    Trainer.from_config(RunConfig.load(path)).run()
    return path


@pytest.fixture(scope="module")
def run_folder(config: Path) -> Path:
    return config.parent / "run"


def says(result: tuple[int, str, str], code: int, *parts: str) -> None:
    """The command ended with `code` and one line on stderr, which holds `parts`."""
    assert result[0] == code, result
    assert result[2].endswith("\n")
    assert result[2].count("\n") == 1, result[2]
    assert result[2].startswith("slm2: ")
    for part in parts:
        assert part in result[2]


# Help


def test_help(slm2: Run) -> None:
    code, out, err = slm2("--help")
    assert (code, err) == (0, "")
    for command in ("prepare", "train", "plan", "launch", "generate", "chat", "export", "doctor"):
        assert command in out


HELP = {
    "train": ["CONFIG", "laptop, stablelm-2-1_6b, ", "--section.field VALUE", "--check"],
    "launch": ["CONFIG", "--gpus N", "--gpu NAME", "--dry-run", "--out DIR", "--sbatch KEY=VALUE"],
    "prepare": ["CONFIG", "--executor {own,local,slurm}", "--tasks N", "--partition NAME"],
    "plan": ["CONFIG", "--gpus N", "--gpu NAME", "--strategy NAME", "--tflops X", "--mfu X"],
    "generate": ["--prompt", "--file", "--samples", "--max-new-tokens", "--stop", "--lookup"],
    "chat": ["model", "--format {zephyr,chatml,plain}", "--system TEXT", "--min-p"],
    "export": ["model", "out", "--format {hf,gguf}", "--type", "q8_0", "--tokenizer"],
    "doctor": ["usage: slm2 doctor"],
}


@pytest.mark.parametrize("command", HELP)
def test_help_of_a_command(slm2: Run, command: str) -> None:
    code, out, err = slm2(command, "--help")
    assert (code, err) == (0, "")
    for word in HELP[command]:
        assert word in out
    assert slm2(command, "-h")[1] == out


@pytest.mark.parametrize("command", ["prepare", "train", "plan", "launch"])
def test_help_has_all_keys_with_values_and_meanings(slm2: Run, command: str) -> None:
    """Of the configuration that is named before --help, else the defaults."""
    _, out, _ = slm2(command, "--help")
    assert f"The values here are the defaults; slm2 {command} CONFIG --help" in " ".join(
        out.split()
    )
    assert out.endswith(f"{manual(RunConfig())}\n")
    code, out, err = slm2(command, "tiny", "--train.steps", "3", "--help")
    assert (code, err) == (0, "")
    assert "The values here are tiny's" in out
    assert out.endswith(f"{manual(RunConfig.preset('tiny'))}\n")
    assert "\n  --model.hidden_size 256  " in out


def test_help_on_a_configuration_that_cannot_be(slm2: Run) -> None:
    says(slm2("train", "tony", "--help"), 2, "preset = 'tony': unknown")


def test_help_into_a_pipe_that_closes() -> None:
    """`| head` has seen enough: no complaint, and no traceback at the end."""
    command = [sys.executable, "-m", "slm2_minimal", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_version(slm2: Run) -> None:
    code, out, err = slm2("--version")
    assert (code, err) == (0, "")
    python = sys.version.split()[0]
    here = f"slm2 {version('slm2-minimal')} (torch {torch.__version__}, Python {python})\n"
    assert out == here


# Wrong words: exit code 2, one line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["COMMAND", "see slm2 --help"]),
        (["fly"], ["'fly'", "train"]),
        (["train"], ["CONFIG", "see slm2 train --help"]),
        (["train", "tony"], ["preset = 'tony'", "choose one of laptop, stablelm-2-1_6b, "]),
        (["train", "nowhere.toml"], ["config = 'nowhere.toml': No such file"]),
        (
            ["train", "tiny", "--train.stepz", "3"],
            ["train.stepz = 3: unknown key; did you mean 'steps'?"],
        ),
        (
            ["train", "tiny", "--train.peak_rate", "1"],
            ["train.peak_rate = 1: unknown key; did you mean 'schedule.peak_rate'?"],
        ),
        (
            ["train", "tiny", "--data.weight", "1"],
            ["data.weight = 1: unknown key; known are prepared, "],
        ),
        (["train", "tiny", "--train.steps", "ten"], ["train.steps = 'ten'", "valid integer"]),
        (["train", "tiny", "--train.steps"], ["train.steps: missing"]),
        (
            ["train", "tiny", "--train.start_from", "a", "--train.init_from", "b"],
            ["train.init_from = 'b': excludes train.start_from = 'a'"],
        ),
        (["train", "tiny", "--train.steps", "-1"], ["train.steps = -1", "greater than 0"]),
        (["train", "tiny", "--steps", "3"], ["argument = '--steps'", "--section.field value"]),
        (["train", "tiny", "extra"], ["argument = 'extra'"]),
        (["train", "tiny", "--data.tokenizer", "gpt2"], ["tokenizer = 'gpt2': unknown"]),
        (
            ["train", "tiny", "--data.sources.web.path", "nowhere.txt"],
            ["path = 'nowhere.txt': no such file"],
        ),
        (
            ["train", "tiny", "--data.tokenizer", "arcade100k"],
            ["model.vocab_size = 1024", "100289 ids"],
        ),
        (["train", "stablelm-2-1_6b"], ["parallel.strategy = 'zero1'", "torchrun"]),
        (
            ["train", "stablelm-2-1_6b", "--check", "--gpus", "512"],
            ["data.sources = {}: nothing to read"],
        ),
        (
            ["train", "laptop", "--check"],
            [
                "data.prepared = 'prepared/laptop': manifest.json: No such file or directory; run"
                " slm2 prepare"
            ],
        ),
        (
            ["train", "tiny", "--check", "--gpus", "3"],
            ["train.global_batch_tokens = 512", "the nearest is 1536"],
        ),
        (["train", "tiny", "--check", "--gpus", "many"], ["--gpus", "'many'"]),
        (
            ["train", "tiny", "--gpus", "2"],
            ["--gpus: goes with --check; slm2 launch tiny starts several"],
        ),
        (
            ["train", "tiny", "--gpu", "a100-40gb"],
            ["--gpu: goes with --check; slm2 launch tiny starts several"],
        ),
        (["launch", "tiny"], ["--gpus", "see slm2 launch --help"]),
        (["launch", "stablelm-2-1_6b", "--gpus", "512"], ["data.sources = {}: nothing to read"]),
        (
            ["launch", "stablelm-2-1_6b", "--gpus", "500", "--dry-run"],
            ["gpus = 500", "the nearest is 496"],
        ),
        (["launch", "tiny", "--gpus", "1", "--train.stepz", "3"], ["train.stepz = 3: unknown key"]),
        (["export"], ["model, out", "see slm2 export --help"]),
        (["export", "x", "y", "--format", "onnx"], ["--format", "'onnx'"]),
        (["export", "/nowhere/at/all", "y"], ["'/nowhere/at/all': no such folder"]),
        (["export", "/nowhere/at/all", "."], ["'/nowhere/at/all': no such folder"]),
        (["generate"], ["model", "see slm2 generate --help"]),
        (["generate", "x", "--top-k", "few"], ["--top-k", "'few'"]),
        (["generate", "/nowhere/at/all", "--temperature", "-1"], ["temperature = -1.0"]),
        (["generate", "/nowhere/at/all", "--top-p", "1.5"], ["top_p = 1.5"]),
        (["generate", "x", "--device", "tpu"], ["--device", "'tpu'"]),
        (
            ["generate", "x", "--tempreature", "1"],
            ["argument = '--tempreature'", "slm2 generate --help"],
        ),
        (["generate", "x", "--temp", "1"], ["argument = '--temp'"]),
        (["generate", "/nowhere/at/all"], ["'/nowhere/at/all': no such folder"]),
        (
            ["generate", "owner/name", "--tokenizer", "tiny"],
            ["path = 'owner/name': neither a local folder nor to be had from the Hub ("],
        ),
        (["generate", "/nowhere/at/all", "--tokenizer", "gpt2"], ["tokenizer = 'gpt2': unknown"]),
        (["doctor", "--fast"], ["argument = '--fast'"]),
    ],
    ids=" ".join,
)
def test_wrong_words(
    slm2: Run, words: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = slm2(*words)
    says(result, 2, *parts)
    assert result[1] == ""
    assert (
        list(tmp_path.iterdir()) == []
    )  # nothing is written before everything is known to be right


def test_a_configuration_may_stand_behind_overrides(slm2: Run, config: Path) -> None:
    expected = slm2("train", config, "--check", "--train.steps", "2")
    assert expected[0] == 0
    for words in (
        ("--train.steps", "2", config, "--check"),
        ("--check", "--train.steps=2", config),
        ("--train.steps", "2", "--check", config),
    ):
        assert slm2("train", *words) == expected


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


# From training to text


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


def test_the_installed_command_and_its_exit_code() -> None:
    slm2 = Path(sys.executable).parent / "slm2"
    done = subprocess.run(
        [slm2, "train", "tony"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("slm2: preset = 'tony'")
    assert done.stderr.count("\n") == 1


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
    monkeypatch.setattr("slm2_minimal.text.tokenizer.load_tokenizer", lambda name: stopping)
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


def test_doctor(slm2: Run) -> None:
    code, out, err = slm2("doctor")
    assert (code, err) == (0, "")
    for part in (
        "python 3.",
        "torch",
        "matrix product",
        "GFLOP/s",
        "memory copy",
        "extra hf",
        "arcade100k: 100,289 ids at hand",
        "disk: ",
    ):
        assert part in out


# Failures: exit code 1


def test_a_run_that_blows_up(slm2: Run, tmp_path: Path) -> None:
    result = slm2(
        "train",
        write_config(tmp_path),
        "--schedule.peak_rate",
        "1e36",
        "--train.prompts",
        "[]",
        "--train.validate_every",
        "9",
    )
    says(result, 1, "TrainingError: loss = ", "not finite, again and again; nothing was updated")


@pytest.mark.parametrize(
    "failure", [RuntimeError("out of memory"), OSError(28, "No space left on device")]
)
def test_failures(
    slm2: Run, config: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(self: Trainer) -> None:
        raise failure

    monkeypatch.setattr(Trainer, "run", fail)
    says(slm2("train", config), 1, f"{type(failure).__name__}: ", str(failure))


def test_interrupted(slm2: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", interrupt)
    assert slm2("train", config)[0] == 130
