"""The planner against the report, and against the arithmetic of sharding by hand."""

from functools import partial
from typing import Any

import pytest

from slm2_minimal.config import CHECKPOINTING, ConfigError, RunConfig, UserError
from slm2_minimal.launch import planner
from slm2_minimal.launch.memory import _Step, block_bytes, loss_bytes, memory, state_bytes
from slm2_minimal.launch.planner import GPUS, communication, plan, table

FULL = RunConfig.preset("stablelm-2-1_6b")
N, TABLE, TOKENS = (
    1_644_515_328,
    205_520_896,
    8192,
)  # parameters; embedding or head; tokens in a micro-batch
report = partial(plan, FULL, 512, "a100-40gb")


def full(**changes: Any) -> RunConfig:
    return RunConfig.load(
        "stablelm-2-1_6b", {key.replace("__", "."): value for key, value in changes.items()}
    )


# The report's run


def test_the_reports_step() -> None:
    planned = report()
    assert (planned.strategy, planned.accumulation, planned.tokens) == (
        "zero1",
        2,
        500_000 * 8_388_608,
    )
    assert f"{planned.mfu:.1%}" == "54.5%"
    assert f"{planned.step_seconds:.3f}" == "1.065"
    assert f"{planned.gpu_hours / 1e3:.1f}k" == "75.7k"
    assert planned.flops_per_token == 6 * (N - TABLE) + 12 * 24 * 2048 * 4096
    assert planned.step_seconds == pytest.approx(
        planned.flops_per_token * 8_388_608 / (512 * 170e12), rel=1e-12
    )


def test_the_reports_cost_and_energy() -> None:
    planned = report()
    assert planned.usd == pytest.approx(75_730 * 3.5, rel=1e-4)
    assert planned.mwh == pytest.approx(
        75_730 * 400 * 1.1 / 1e6, rel=1e-4
    )  # 33.3, between the reported 30 and 40.5 for 92k hours
    assert planned.tonnes_co2 == pytest.approx(planned.mwh * 0.385)


def test_micro_batch_2_fits_40_gb_without_checkpointing_and_4_does_not() -> None:
    assert report().fits
    four = full(train__micro_batch_size=4)
    assert not plan(four, 512, "a100-40gb").fits
    assert plan(four, 512, "a100-40gb").memory.total == pytest.approx(
        40e9 - planner.RESERVE, rel=3e-2
    ), "nearly: without accumulation"
    assert not plan(four, 256, "a100-40gb").fits, (
        "sums of gradients, 4 bytes per parameter, come with it"
    )
    assert plan(four, 256, "a100-40gb", "zero1", "selective").fits
    for kind in CHECKPOINTING:
        assert report("ddp", kind).fits == (kind == "full"), (
            "16 bytes per parameter on every rank leave little"
        )
        assert report("fsdp", kind).fits
        assert report("hybrid", kind).fits


def test_the_full_models_activations_by_hand() -> None:
    """A layer keeps per token 8,192 + 16 before the norms, 8,192 normalised, 20,480 +
    128 of attention and 45,056 of MLP.
    """
    layer = block_bytes(FULL.model, 4096, weight_size=2)
    assert layer == 8_192 + 16 + 8_192 + 20_480 + 128 + 45_056
    assert block_bytes(FULL.model, 4096) == layer + 8_192 + 12_288
    assert block_bytes(FULL.model, 4096, weight_size=2, dense_mask=True) == layer + 8_192
    assert block_bytes(FULL.model, 4096, "full", weight_size=2) == 4_096
    assert block_bytes(FULL.model, 4096, "selective", weight_size=2) == 4_096 + 128 + 2 * (
        6 * 2048 + 2 * 5632
    )
    needed = report().memory
    assert needed.activations == TOKENS * (24 * layer + 2 * 2048 + 8 + 32 + 12 * 8)
    rows = 2**29 // (
        4 * 100_352
    )  # of a chunk: two chunks of logits in fp32 and bf16 beside the gradient of the head
    assert (
        needed.working
        == loss_bytes(FULL.model, TOKENS, 2)
        == TOKENS * 4 * 2048 + 4 * TABLE + rows * (12 * 100_352 + 2 * 2048)
    )
    assert (
        needed.total
        == needed.weights
        + needed.gradients
        + needed.optimizer
        + needed.activations
        + needed.working
    )


def test_what_full_checkpointing_costs() -> None:
    """The blocks run forward twice but for down_proj: 2 FLOP per weight and token, and
    4 L C T of attention; the head runs once.
    """
    plain, full = report(), report("zero1", "full")
    again = 2 * (N - 2 * TABLE) + 4 * 24 * 2048 * 4096 - 2 * 24 * 2048 * 5632
    assert full.step_seconds / plain.step_seconds == pytest.approx(
        1 + again / plain.flops_per_token, rel=1e-9
    )
    assert full.mfu == pytest.approx(plain.mfu * plain.step_seconds / full.step_seconds, rel=1e-9)
    assert report("zero1", "selective").step_seconds == plain.step_seconds


def test_a_given_rate() -> None:
    assert report(mfu=170 / 312) == report(tflops=170)
    assert report(tflops=85).gpu_hours == pytest.approx(2 * report().gpu_hours)
    assert report(tflops=156).mfu == pytest.approx(0.5)
    assert report(usd_per_hour=7).usd == pytest.approx(2 * report().usd)  # type: ignore[operator]
    assert plan(FULL, 512, "h100-80gb").usd is None


# Sharding and communication by hand


def test_states_of_every_strategy() -> None:
    steps = 4 * 340  # a step count per tensor
    assert (
        state_bytes(FULL.model, "single", 1)
        == state_bytes(FULL.model, "ddp", 1)
        == (4 * N, 4 * N, 8 * N + steps)
    )
    assert state_bytes(FULL.model, "zero1", 512) == (2 * N, 4 * N, 12 * N / 512 + steps)
    assert state_bytes(FULL.model, "zero1", 512, accumulates=False) == (
        2 * N,
        4 * N / 512,
        12 * N / 512 + steps,
    )
    assert state_bytes(FULL.model, "fsdp", 512) == (N / 128, N / 128, N / 64 + steps)
    needed = report("hybrid").memory
    assert (needed.weights, needed.gradients, needed.optimizer) == (N / 2, N / 2, N + steps)


def test_fsdp_gathers_the_root_and_a_block_ahead() -> None:
    block = (N - 2 * TABLE - 2 * 2048) // 24
    assert block == 16_777_216 + 34_603_008 + 3 * 2048 + 4 * 2048
    gathered = report("fsdp").memory.working - report("zero1").memory.working
    assert gathered == 2 * (N - 24 * block + block)


def test_bytes_sent_by_hand() -> None:
    card, part = GPUS["a100-40gb"], 511 / 512
    root = 2 * TABLE + 2 * 2048
    assert communication(FULL, 512, "ddp", card) == pytest.approx(
        (2 * part * 4 * N, 2 * part * 4 * N / 50e9)
    )
    assert communication(FULL, 512, "zero1", card) == pytest.approx(
        (part * 6 * N, part * 6 * N / 50e9)
    )
    fsdp = (
        2 * part * (8 * N - 2 * root)
    )  # two micro-batches; embedding, head and final norm are gathered once in each
    assert communication(FULL, 512, "fsdp", card) == pytest.approx((fsdp, fsdp / 50e9))
    inside, among = 2 * 7 / 8 * (8 * N - 2 * root), 2 * 63 / 64 * 4 * N / 8
    assert communication(FULL, 512, "hybrid", card) == pytest.approx(
        (inside + among, inside / 300e9 + 8 * among / 50e9)
    )
    assert communication(FULL, 8, "ddp", card) == pytest.approx(
        (2 * 7 / 8 * 4 * N, 2 * 7 / 8 * 4 * N / 300e9)
    )
    assert communication(FULL, 1, "single", card) == (0, 0)


def test_bytes_sent_among_other_shards() -> None:
    """Two repetitions inside a node share nothing; shards of two nodes reduce over the
    network, as do their 8 rings a node.
    """
    card, once = GPUS["a100-40gb"], 8 * N - 2 * (2 * TABLE + 2 * 2048)
    four, sixteen = (
        full(parallel__strategy="hybrid", parallel__shard_ranks=ranks) for ranks in (4, 16)
    )
    inside, among = 128 * 3 / 4 * once, 4 * N / 4
    assert communication(four, 8, "hybrid", card) == pytest.approx(
        (inside + among, (inside + among) / 300e9)
    )
    inside, among = 2 * 15 / 16 * once, 2 * 31 / 32 * 4 * N / 16
    assert communication(sixteen, 512, "hybrid", card) == pytest.approx(
        (inside + among, inside / 50e9 + 8 * among / 50e9)
    )


@pytest.mark.parametrize("strategy", ["zero1", "fsdp"])
def test_more_ranks_need_less_each(strategy: str) -> None:
    totals = [memory(FULL, gpus, strategy).total for gpus in (2, 8, 64, 512)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "fsdp", "hybrid"])
@pytest.mark.parametrize("kind", CHECKPOINTING)
def test_more_tokens_need_more_and_more_checkpointing_less(strategy: str, kind: str) -> None:
    runs = [full(train__micro_batch_size=size) for size in (1, 2, 4)]
    totals = [memory(run, 128, strategy, kind).total for run in runs]
    assert totals == sorted(totals)
    assert len(set(totals)) == 3
    assert (
        memory(FULL, 512, strategy, "none").total
        >= memory(FULL, 512, strategy, kind).total
        >= memory(FULL, 512, strategy, "full").total
    )


def test_the_reserve_counts() -> None:
    card = GPUS["a100-40gb"]
    for strategy in ("ddp", "zero1", "fsdp"):
        for kind in CHECKPOINTING:
            planned = report(strategy, kind)
            assert planned.fits == (planned.memory.total <= card.memory - planner.RESERVE)


# What a user can get wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["512", "a100"],
            "gpu = 'a100': unknown; choose one of a100-40gb, a100-80gb, h100-80gb, h200-141gb",
        ),
        (
            ["500"],
            (
                "gpus = 500: must share 1024 micro-batches of 8192 tokens evenly and, above 8, fill"
                " nodes of 8; the nearest is 512"
            ),
        ),
        (["0"], "gpus = 0: .* the nearest is 1"),
        (["-8"], "gpus = -8: .* the nearest is 1"),
        (["2048"], "gpus = 2048: .* the nearest is 1024"),
        (["8", "a100-40gb", "zero3"], "strategy = 'zero3': unknown; choose one of single, ddp"),
        (
            ["8", "a100-40gb", "single"],
            "strategy = 'single': is for one GPU, not 8; use ddp, zero1, fsdp",
        ),
        (
            ["8", "a100-40gb", "hybrid"],
            (
                "strategy = 'hybrid': needs more GPUs than the 8 that share the shards, and a"
                " multiple of them, not 8; use"
            ),
        ),
        (
            ["8", "a100-40gb", "ddp", "some"],
            "checkpointing = 'some': unknown; choose one of none, selective, full",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_planned(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(FULL, int(words[0]), *(words[1:] or ["a100-40gb"]))


def test_the_configurations_own_strategy() -> None:
    """What is left out is what would run."""
    hybrid = full(
        parallel__strategy="hybrid", parallel__shard_ranks=4, parallel__checkpointing="full"
    )
    planned = plan(hybrid, 8, "a100-40gb")
    assert (planned.strategy, planned.checkpointing) == ("hybrid", "full")
    assert planned.memory == memory(hybrid, 8, "hybrid", "full")
    assert planned.memory.weights == N, "in fp32 among four"
    assert plan(hybrid, 8, "a100-40gb", "zero1", "none").strategy == "zero1"
    auto = full(parallel__strategy="auto")
    assert [plan(auto, gpus, "a100-80gb").strategy for gpus in (1, 2)] == ["single", "zero1"]
    assert plan(FULL, 1, "a100-80gb").strategy == "zero1", (
        "one of torchrun's, if that is what the configuration says"
    )


def test_what_the_configuration_rules_out() -> None:
    with pytest.raises(ConfigError, match=r"^parallel\.tensor_parallel = 2: is not planned"):
        plan(full(parallel__tensor_parallel=2), 8, "a100-40gb")
    tied = full(model__tie_word_embeddings=True)
    with pytest.raises(
        ConfigError, match=r"^strategy = 'zero1': cannot shard tied embeddings .*; use ddp$"
    ):
        plan(tied, 8, "a100-40gb")
    assert "zero1" not in table(tied, plan(tied, 8, "a100-80gb", "ddp"))
    with pytest.raises(
        ConfigError, match=r"^strategy = 'hybrid': needs more GPUs than the 3 .* not 8"
    ):
        plan(full(parallel__strategy="hybrid", parallel__shard_ranks=3), 8, "a100-40gb")


def test_gpus_that_fill_no_node() -> None:
    run = full(train__global_batch_tokens=12 * 8192)
    with pytest.raises(
        ConfigError, match=r"gpus = 12: must share 12 micro-batches .* the nearest is 6"
    ):
        plan(run, 12, "a100-40gb")
    assert plan(run, 6, "a100-40gb").accumulation == 2


@pytest.mark.parametrize("gpus", [1000, 10**6 - 1])
def test_a_huge_batch_is_planned_at_once(gpus: int) -> None:
    """The nearest number is looked for around the one given, not among all of them."""
    run = full(train__global_batch_tokens=8192 * (2**22 + 8))
    with pytest.raises(ConfigError, match=rf"gpus = {gpus}: .* the nearest is \d+$"):
        plan(run, gpus, "a100-40gb")
    assert plan(run, 8, "a100-40gb").accumulation == 2**19 + 1


@pytest.mark.parametrize("strategy", ["single", "zero1", "fsdp"])
@pytest.mark.parametrize("layers", [1, 2, 3, 9])
def test_the_worst_moment_of_every_block(strategy: str, layers: int) -> None:
    """Only the blocks at both ends are looked at; none between them is worse."""
    run = full(model__num_hidden_layers=layers, train__micro_batch_size=4)
    step = _Step(run, 8, strategy, "none", False)
    every = max(step.in_backward(finished).total for finished in range(layers))
    assert every <= memory(run, 8, strategy).total


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        ({"tflops": 0.0}, "tflops = 0.0: must be above 0 and at most the peak, 312"),
        ({"tflops": 400.0}, "tflops = 400.0: "),
        ({"mfu": 54.5}, "mfu = 54.5: must be above 0 and at most the peak, 1;"),
        ({"mfu": float("nan")}, "mfu = nan: "),
        ({"mfu": 0.5, "tflops": 170.0}, "mfu = 0.5: says the same as tflops = 170.0"),
        ({"usd_per_hour": -1.0}, "usd_per_hour = -1.0: must be a number from 0 on"),
        ({"usd_per_hour": float("nan")}, "usd_per_hour = nan: "),
        ({"usd_per_hour": float("inf")}, "usd_per_hour = inf: "),
    ],
)
def test_rates_that_no_gpu_has(rate: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        report(**rate)


def test_a_run_in_fp32_is_not_planned() -> None:
    with pytest.raises(ConfigError, match=r"train\.dtype = 'float32'"):
        plan(full(train__dtype="float32"), 1, "a100-40gb")
