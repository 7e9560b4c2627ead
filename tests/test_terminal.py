"""What a terminal is shown, and by which process."""

import logging

import pytest

from slm2_minimal.terminal import complain, log_to_terminal


@pytest.mark.parametrize(
    ("local_rank", "code", "lines"), [("0", 2, 1), ("1", 2, 0), ("1", 1, 1), (None, 2, 1)]
)
def test_one_process_of_a_machine_tells_a_users_error(
    local_rank: str | None,
    code: int,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All meet it. A failure may be one process's own, and is told by each."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert complain("train.steps = 0:\nmust be more", code) == code
    said = capsys.readouterr().err
    assert said.count("\n") == lines
    assert said.startswith("slm2: ") or not lines


@pytest.mark.parametrize("beside_text", [False, True])
def test_lines_keep_out_of_a_text(beside_text: bool, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("slm2_minimal.some.room")
    log_to_terminal(beside_text=not beside_text)
    log_to_terminal(beside_text=beside_text)
    logger.info("a line")
    logger.warning("look here")
    log_to_terminal()
    out, err = capsys.readouterr()
    warning = "slm2: warning: look here\n"
    assert (out, err) == (("", f"a line\n{warning}") if beside_text else ("a line\n", warning))
