"""What `slm2 train --check` finds before a run starts."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slm2_minimal.config import RunConfig
from slm2_minimal.distributed import checkpoint
from slm2_minimal.launch.check import check
from slm2_minimal.launch.memory import memory
from slm2_minimal.launch.planner import GPUS, RESERVE
from slm2_minimal.prepare.run import prepare
from slm2_minimal.train.trainer import Trainer
from tests.complaints import complaint

Make = Callable[..., RunConfig]
FULL = RunConfig.preset("stablelm-2-1_6b")


# The check


def test_a_run_that_can_start(small_run: Make, tmp_path: Path) -> None:
    run = small_run()
    lines = {line.split()[0]: line for line in check(run, 2)}
    assert list(lines) == [
        "processes", "batch", "memory", "tokenizer", "data", "schedule", "validation", "epochs",
        "output",
    ]  # fmt: skip
    assert lines["schedule"].endswith("at the last step; cooldown from step 16 to 20")
    assert " of 2 languages, 2 times: " in lines["validation"]
    assert lines["processes"].endswith("2 = 1 node of 2; zero1")
    assert lines["batch"].endswith("256 tokens = 2 x micro-batch 4 x 32 x accumulation 1")
    assert "not checked" in lines["memory"]
    assert lines["tokenizer"].endswith("tiny: 1,024 ids, 1,024 rows in the model")
    counts = Trainer.from_config(run).loader.counts
    assert lines["data"].endswith(
        f"not prepared: {sum(counts):,} sequences of 32; 20 steps read 160"
    )
    epochs = {
        name: float(count) for name, count in re.findall(r"(\w+) (\d+\.\d+)", lines["epochs"])
    }
    assert epochs["en"] == pytest.approx(160 * 2 / 3 / counts[0], abs=0.02)
    assert lines["output"].endswith(f"{tmp_path}/run: a new run")
    assert list(tmp_path.iterdir()) == []


def test_prepared_data(small_run: Make, tmp_path: Path) -> None:
    """Opened by its sizes: a byte that was altered costs a whole reading to find, which
    training does and the check does not.
    """
    run = small_run(**{"data.prepared": str(tmp_path / "prepared")})
    assert "run slm2 prepare" in complaint(lambda: check(run, 1))
    prepare(run)
    assert "prepared: " in "\n".join(check(run, 1))
    shard = next((tmp_path / "prepared").glob("en-*.tokens.npy"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"\1")
    check(run, 1)
    shard.write_bytes(content[:-1])
    assert shard.name in complaint(lambda: check(run, 1))


WRONG: list[tuple[int, dict[str, Any], str]] = [
    (0, {}, r"gpus = 0: must lie between 1 and 8, or fill nodes of 8; the nearest is 1$"),
    (12, {}, r"gpus = 12: .* the nearest is 16$"),
    (
        2,
        {"parallel.strategy": "single"},
        r"parallel\.strategy = 'single': is for one process, not 2; use ddp",
    ),
    (
        6,
        {"parallel.strategy": "hybrid", "parallel.shard_ranks": 4},
        r"parallel\.shard_ranks = 4: must divide the number of processes, 6$",
    ),
    (
        1,
        {"parallel.strategy": "fsdp", "parallel.tensor_parallel": 2},
        r"parallel\.tensor_parallel = 2: must divide the GPUs of a node, 1$",
    ),
    (
        2,
        {"model.tie_word_embeddings": True},
        r"model\.tie_word_embeddings = true: cannot be sharded; use ddp instead of zero1$",
    ),
    (
        4,
        {},
        (
            r"train\.global_batch_tokens = 256: must be a multiple of 512 = 4 x .* on 4 GPUs; the"
            r" nearest is 512$"
        ),
    ),
    (
        8,
        {"parallel.strategy": "zero1", "parallel.tensor_parallel": 2},
        r"train\.global_batch_tokens = 256: must be a multiple of 512 = 4 x ",
    ),
    (
        1,
        {"model.vocab_size": 1000},
        r"model\.vocab_size = 1000: the tokenizer 'tiny' has 1024 ids; use at least as many$",
    ),
    (1, {"data.sources": {}}, r"data\.sources = \{\}: nothing to read; name sources, "),
    (
        16,
        {"train.global_batch_tokens": 2048},
        r"data\.prepared is not set: each of 16 processes would tokenise all ",
    ),
    (1, {"data.sources": {"web": {"path": "nowhere.txt"}}}, r"path = 'nowhere\.txt': no such file"),
    (
        1,
        {"train.steps": 20_000},
        r"data\.sources\.\w+\.max_epochs = 4\.0: a run of 160,000 sequences would read ",
    ),
    (
        1,
        {"train.output_dir": "/dev/null/run"},
        r"train\.output_dir = '/dev/null/run': /dev/null cannot be written; name another",
    ),
    (
        1,
        {"train.start_from": "nowhere"},
        r"checkpoint = 'nowhere': No such file or directory; give a folder that holds ",
    ),
]


@pytest.mark.parametrize(("gpus", "changes", "message"), WRONG, ids=[case[2] for case in WRONG])
def test_a_run_that_cannot_start(
    small_run: Make, gpus: int, changes: dict[str, Any], message: str
) -> None:
    run = (
        small_run(**changes)
        if "model.vocab_size" not in changes
        else small_run(**changes, **{"model.eos_token_id": 0})
    )
    assert re.match(message, complaint(lambda: check(run, gpus)))


def test_the_full_run_says_which_field_to_fill() -> None:
    assert complaint(lambda: check(FULL, 512, "a100-40gb")).startswith(
        "data.sources = {}: nothing to read; name sources"
    )


# The check of memory


def full_run(**changes: Any) -> RunConfig:
    """The report's run with data that is not there: what follows the check of
    memory.
    """
    return RunConfig.load(
        "stablelm-2-1_6b",
        {"data.prepared": "nowhere", "data.sources": {"web": {"path": "x"}}} | changes,
    )


@pytest.mark.parametrize("gpu", ["a100-40gb", "a100-80gb"])
@pytest.mark.parametrize(
    ("gpus", "parallel"),
    [
        (8, {"strategy": "ddp"}),
        (8, {"strategy": "zero1"}),
        (64, {"strategy": "fsdp", "checkpointing": "selective"}),
        (64, {"strategy": "hybrid"}),
        (64, {"strategy": "hybrid", "checkpointing": "full"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [2, 4, 8])
def test_memory_is_the_planners(gpus: int, parallel: dict[str, str], rows: int, gpu: str) -> None:
    run = full_run(parallel=parallel, **{"train.micro_batch_size": rows})
    needed = memory(run, gpus, parallel["strategy"], parallel.get("checkpointing", "none")).total
    said = complaint(lambda: check(run, gpus, gpu))
    if needed + RESERVE <= GPUS[gpu].memory:
        assert said.startswith("data.prepared = 'nowhere': ")
    else:
        assert re.match(
            rf"train\.micro_batch_size = {rows}: {parallel['strategy']} with .* needs"
            rf" {needed / 1e9:.1f} GB a rank, ",
            said,
        )


def test_memory_of_hybrid_with_ranks_of_its_own_number() -> None:
    run = full_run(
        parallel={"strategy": "hybrid", "shard_ranks": 2}, **{"train.micro_batch_size": 8}
    )
    assert f"needs {memory(run, 2, 'fsdp').total / 1e9:.1f} GB a rank" in complaint(
        lambda: check(run, 8, "a100-40gb")
    )


def test_memory_with_tensor_parallelism_is_not_judged(small_run: Make) -> None:
    run = small_run(**{"parallel.strategy": "fsdp", "parallel.tensor_parallel": 2})
    assert "memory      without tensor parallelism, which the planner leaves out: " in "\n".join(
        check(run, 2, "a100-40gb")
    )


def test_memory_of_the_gpu_that_is_there(small_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda number: SimpleNamespace(name="Small Card", total_memory=2.5e9),
    )
    run = small_run(**{"train.device": "auto"})
    assert "2 kept free, of 2.5 on Small Card (planned)" in "\n".join(check(run, 1))
    assert "not checked" in "\n".join(check(small_run(), 1)), "a run on the CPU"
    assert "of 40.0 on a100-40gb" in "\n".join(check(run, 1, "a100-40gb"))


def test_an_unknown_gpu(small_run: Make) -> None:
    assert complaint(lambda: check(small_run(), 1, "a100")).startswith(
        "gpu = 'a100': unknown; choose one of a100-40gb, "
    )


# The check of checkpoints


def test_where_a_run_goes_on(
    small_run: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short, branch = (
        small_run(**{"train.steps": 4}),
        {"train.start_from": str(tmp_path / "run" / "step-00000004")},
    )
    Trainer.from_config(short).run()
    for run in (small_run(), small_run("other", **branch)):
        assert check(run, 1)[-1].endswith(
            f"goes on from {tmp_path}/run/step-00000004, after step 4 of 20"
        )
    assert complaint(lambda: check(small_run(**{"train.seed": 5}), 1)).startswith(
        "train.seed = 5: the run in "
    )
    wide = small_run("other", **branch, **{"model.hidden_size": 64})
    assert complaint(lambda: check(wide, 1)).startswith("model.hidden_size = 64: the checkpoint ")
    assert "use the same sources, " in complaint(
        lambda: check(small_run("other", **branch, **{"data.seed": 5}), 1)
    )
    (saved,) = checkpoint.steps(tmp_path / "run")
    weights = next(saved.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "every checkpoint is damaged" in complaint(lambda: check(small_run(), 1))
    assert "missing or altered" in caplog.text
