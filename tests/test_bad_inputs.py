"""What a user can get wrong, over all commands: exit code 2, one line that starts with
`slm2: `, no traceback, and nothing written or lost.

Most cases are made from compact lists: every key with what its type is not, every
option. Paths and damaged files are in test_bad_files.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from slm2_minimal.config import RunConfig, SourceConfig
from tests.commands import DIGITS, LONG, TAKE_A_CONFIG, TRAIN, Words, is_refused, name_of
from tests.test_bad_files import DAMAGED, TOML

# Every key


def wrong_values(key: str, schema: dict[str, Any]) -> list[str]:
    """What a key of this JSON schema cannot be, as it would be typed."""
    for inner in schema.get("anyOf", []):
        if inner.get("type") != "null":
            return wrong_values(key, inner)
    if "enum" in schema or "const" in schema:
        return ["other", "1", "[]", ""]
    kind = schema.get("type")
    if kind == "string":  # text may be anything, a path not
        no_paths = key.endswith(("text_field", "wandb"))
        return [] if no_paths else ["", " ", "~nobody-x/a", "a\0b"]
    return {
        "integer": ["ten", "11.5", "true", "[1]", "-1", str(2**70), DIGITS, f"0x{'f' * 5000}"],
        "number": ["much", "true", "[1]", "nan", "inf", "-1", "1e400"],
        "boolean": ["maybe", "1", "[true]", ""],
        "array": ["word", "3", "[1]", "[[]]"],
        "object": ["word", "3", "{a = 3}", "[]"],
    }[str(kind)]


def wrong_keys() -> Iterator[Words]:
    """Every key with each wrong value, by one of the commands in turn."""
    sections = {name: type(getattr(RunConfig(), name)) for name in RunConfig.fields()}
    tables = sections | {"data.sources.letters": SourceConfig}
    number = 0
    for table, section in tables.items():
        for field, schema in TypeAdapter(section).json_schema()["properties"].items():
            key = f"{table}.{field}"
            for value in wrong_values(key, schema):
                yield [*TAKE_A_CONFIG[number % 4], f"--{key}={value}"]
                number += 1


KEYS = list(wrong_keys())


@pytest.mark.parametrize("words", KEYS, ids=name_of)
def test_every_key(words: Words, made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is opened, so that all can share one folder."""
    words = [str(made / word) if word == "small.toml" else word for word in words]
    key = words[-1].removeprefix("--").partition("=")[0]
    assert key.rpartition(".")[2] in is_refused(words, made / "empty", capfd)


# Keys that do not go together, unknown ones, and words that are no overrides

STAGE = "{start_tokens=32,weights={letters=1}}"
TOGETHER: list[Words] = [
    [*TRAIN, *words.split(" ")]
    for words in (
        "--train.step 3",
        "--train.steps",
        "--train.steps --check",
        "--train.steps.x 3",
        "--trian.steps 3",
        "--.steps 3",
        "--train. 3",
        "--. 3",
        "--data.sources.letters.wieght 3",
        "--data.sources.letters 3",
        "--data.sources.letters.path nowhere.jsonl",
        "--data.sources.letters.text_field body",
        '--data.sources.letters.languages ["xx"]',
        "--data.sources.x.path empty",
        "--data.sources.letters.weight 0.5",
        "--data.sources.x.weight 3000000",
        '--data.stages [{"start_tokens"=32}]',
        "--data.stages [{start_tokens=33,weights={letters=1}}]",
        "--data.stages [{start_tokens=32,weights={}}]",
        "--data.stages [{start_tokens=32,weights={other=1}}]",
        "--data.stages [{start_tokens=32,weights={letters=-1}}]",
        "--data.stages [{start_tokens=32,weights={letters=nan}}]",
        f"--data.stages [{STAGE},{STAGE}]",
        "--data.temperature 2 --data.stages [{start_tokens=32,weights={letters=1}}]",
        "--data.seq_len 65",
        "--data.tokenizer arcade100k",
        "--data.tokenizer broken.model",
        "--data.tokenizer broken.tiktoken",
        "--data.tokenizer empty",
        "--data.prepared empty",
        "--data.prepared file",
        "--data.prepared nowhere",
        "--data.sources.letters.max_epochs 0.001",
        "--model.hidden_size 33",
        "--model.num_key_value_heads 3",
        "--model.partial_rotary_factor 0",
        "--model.partial_rotary_factor 0.01",
        "--model.partial_rotary_factor 0.2",
        "--model.vocab_size 1000",
        "--model.bos_token_id 1024",
        "--model.hidden_size 1048576 --model.vocab_size 16777216",
        "--model.layer_norm_eps 1e-46",
        "--model.rope_theta 1e-300",
        "--optimizer.eps 1e-46",
        "--optimizer.weight_decay 1e30",
        "--schedule.min_rate 1",
        "--schedule.kind wsd",
        "--schedule.kind inverse_sqrt",
        "--schedule.cooldown_start 1",
        "--schedule.cooldown_steps 1",
        "--schedule.cooldown_start 0 --schedule.cooldown_steps 1",
        "--schedule.decay_steps 1e3",
        "--train.global_batch_tokens 100",
        "--train.micro_batch_size 3",
        "--train.steps 1e3",
        "--train.steps 99999999",
        "--train.start_from a --train.init_from b",
        "--train.output_dir new --train.start_from nowhere",
        "--train.output_dir new --train.start_from hub",
        "--train.output_dir new --train.start_from file/x",
        '--train.prompts [""]',
        "--train.sample_tokens 64",
        "--train.profile_step 2",
        "--train.output_dir file",
        "--train.output_dir file/x",
        f"--train.output_dir {'x' * 300}",
        f"--train.output_dir {LONG}",
        "--parallel.strategy ddp",
        "--parallel.tensor_parallel 2",
        "--parallel.shard_ranks 2",
        "--parallel.compile yes",
        "--data.sources.x.path owner/NAME.JSONL",
        "--prepare.permutations 100000",
        "--prepare.shingle_words 1000000000",
        "--prepare.ngram_words 1000000000",
        "--gpus 0",
        "--gpu tpu",
        "--gpus many",
        f"--gpus {DIGITS}",
        f"--gpu {LONG}",
        f"--train.{LONG} 3",
        f"--{LONG}.steps 3",
        "--steps 3",
        "-x",
        "extra",
        LONG,
        "extra\nline",
    )
]  # fmt: skip

OPTIONS: list[Words] = [
    [],
    ["fly"],
    [LONG],
    ["\n"],
    ["train"],
    ["train", "small.toml", "--gpus", "2"],
    ["train", "small.toml", "--gpu", "a100-40gb"],
    ["prepare"],
    ["prepare", "small.toml"],  # where to is not said
    ["plan", "small.toml"],
    ["launch", "small.toml"],
    ["doctor", "--fast"],
    ["doctor", "--a.b", "3"],
    *[
        ["prepare", "small.toml", "--data.prepared", "out", *words.split(" ")]
        for words in (
            "--executor other",
            "--tasks 2",
            "--partition a",
            "--dry-run",
            "--executor local --tasks 0",
            "--executor local --tasks -1",
            "--executor local --tasks 100000000",
            f"--executor local --tasks {DIGITS}",
            "--executor local --time 1:00",
            "--executor slurm --dry-run --sbatch x\n#y=1",
            "--executor slurm --dry-run --partition a\nb",
            "--executor slurm --dry-run --time 1\n2",
            "--data.prepared file",
            "--data.prepared file/x",
        )
    ],
    *[
        ["plan", "small.toml", "--gpus", "1", *words.split(" ")]
        for words in (
            "--gpus 0", "--gpus -1", "--gpus 9", "--gpus 1.5", "--gpus 100000000000",
            "--gpu tpu", "--strategy other", "--strategy ddp", "--checkpointing some",
            "--tflops nan", "--tflops inf", "--tflops 0", "--tflops -1", "--tflops 1e300",
            "--mfu nan", "--mfu 0", "--mfu -1", "--mfu 1e300", "--mfu 0.4 --tflops 100",
            "--usd-per-hour nan", "--usd-per-hour inf", "--usd-per-hour -1",
            "--usd-per-hour much", "--usd-per-hour 1e300",
        )
    ],
    *[
        ["launch", "small.toml", "--gpus", "1", "--dry-run", *words.split(" ")]
        for words in (
            "--gpus 0", "--gpus 9", "--gpus 1000000000", "--gpu tpu", "--out=", "--out=file",
            "--out=~nobody-x", "--out=a\0b", f"--out={'x' * 300}", "--sbatch a=b\n#c=1",
            "--sbatch =3", "--sbatch a\nb=3", "--partition a\nb", "--time 1\r2",
        )
    ],
    *[
        ["generate", "run", *words.split(" ")]
        for words in (
            "--temperature -1", "--temperature nan", "--temperature inf", "--temperature 1e-40",
            "--temperature much", "--top-k 0", "--top-k -1", "--top-k few", f"--top-k {DIGITS}",
            "--top-p 0", "--top-p 1.5", "--top-p nan", "--top-p -1", "--seed much",
            f"--seed {2**64}", f"--seed -{2**64}", f"--seed {DIGITS}", "--max-new-tokens -1",
            "--max-new-tokens 100", "--max-new-tokens 1e3", f"--max-new-tokens {10**30}",
            f"--max-new-tokens {DIGITS}", "--device tpu", "--tempreature 1", "--tokenizer=",
            "--tokenizer gpt2", "--tokenizer nowhere.model", "--tokenizer broken.model",
            "--tokenizer broken.tiktoken", "--tokenizer arcade100k", "--tokenizer a\0.model",
            "--tokenizer ~nobody-x/a.model", f"--tokenizer {'x' * 300}.model",
            f"--tokenizer {LONG}", "extra", "--a.b 3", "--min-p 0", "--min-p nan", "--min-p 2",
            "--repetition-penalty 0", "--repetition-penalty nan", "--repetition-penalty inf",
            "--samples 0", f"--samples -{DIGITS}", "--stop=", "--lookup", "--file=",
            "--file nowhere", "--file empty", "--file file/x", "--file a\0b", f"--file {LONG}",
            "--file ~nobody-x/a", f"--prompt {LONG}", f"--prompt a --prompt {LONG}",
            "--lookup --temperature 0 --samples 2",
        )
    ],
    *[
        ["chat", "run", *words.split(" ")]
        for words in (
            "--format alpaca", "--format chatml", "--temperature -1", "--min-p 0",
            "--max-new-tokens 0", "--max-new-tokens 64", f"--max-new-tokens {DIGITS}", "--system=",
            f"--system {LONG}", "--tokenizer arcade100k", "--device tpu", "extra", "--a.b 3",
        )
    ],
    ["chat", "hub", "--tokenizer", "tiny"],
    ["chat", "hub", "--format", "plain"],
    ["generate", "hub"],
    *[
        ["quantise", "run", "out", *words.split(" ")]
        for words in (
            "--bits 5", "--bits many", f"--bits {DIGITS}", "--group 0", "--group -1", "--group 48",
            "--group few", f"--group {DIGITS}", "--method awq", "--method gptq",
            "--calibrate small.toml", "--method gptq --calibrate=",
            "--method gptq --calibrate file",
            "--method gptq --calibrate nowhere", "--method gptq --calibrate empty",
            "--method gptq --calibrate a\0b", "--tokenizer nowhere.model", "--tokenizer arcade100k",
            "extra", "--a.b 3",
        )
    ],
    *[
        ["export", "hub", "out", *words.split(" ")]
        for words in (
            "extra", "--type float16", "--type q8_0", "--type=", "--format onnx",
            "--tokenizer tiny", "--format gguf", "--format gguf --type q2_k",
            "--format gguf --tokenizer arcade100k", "--format gguf --tokenizer nowhere.model",
            "--format gguf --tokenizer=", "--format gguf --tokenizer broken.model",
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize("words", [*TOGETHER, *OPTIONS], ids=name_of)
def test_words(words: Words, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    is_refused(words, here, capfd)


@pytest.mark.parametrize("path", ["nowhere", "owner/NAME.JSONL", "owner/name.ndjson"])
@pytest.mark.parametrize("key", ["data.sources.letters.path", "prepare.benchmarks.a"])
def test_nothing_to_prepare(
    key: str, path: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare", "small.toml", "--data.prepared", "out", f"--{key}={path}"]
    is_refused(words, here, capfd)


def test_how_many_these_are() -> None:
    cases = len(KEYS) + len(TOGETHER) + len(OPTIONS) + len(TOML) + len(DAMAGED)
    assert cases >= 400
