"""What a process of the room loads, asks for and prints: no torch, no folder by a
question, the log's lines and the errors of the terminal.
"""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slm2_minimal
from slm2_minimal.cli import log_to_terminal
from slm2_minimal.config import DataConfig, PrepareConfig
from slm2_minimal.prepare.units import Unit
from slm2_minimal.prepare.work import Job

WITHOUT_THE_PACKAGES_OWN_INIT = """
import importlib, pathlib, sys, types
package = types.ModuleType("slm2_minimal")
package.__path__ = [sys.argv[1]]
sys.modules["slm2_minimal"] = package
for path in sorted(pathlib.Path(sys.argv[1], "prepare").glob("*.py")):
    importlib.import_module(f"slm2_minimal.prepare.{path.stem}")
    assert "torch" not in sys.modules, path.stem
print(len(sys.modules))
"""


def test_no_module_of_the_room_imports_torch() -> None:
    """Every worker and every task of a cluster would wait for it.

    What the package's own `__init__` loads is another room's affair.
    """
    folder = str(Path(slm2_minimal.__file__).parent)
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGES_OWN_INIT, folder]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100


def test_to_ask_for_a_path_makes_no_folder(tmp_path: Path) -> None:
    job = Job(DataConfig(prepared=str(tmp_path / "out")), PrepareConfig())
    unit = Unit("web-000000", "web", 1, 1, 1, {}, last=True)
    assert job.path("keys", unit).is_relative_to(job.work)
    assert job.text.is_relative_to(job.work)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def restored_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("slm2_minimal")
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def test_a_command_prints_what_the_package_logs_once(
    restored_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_terminal()
    log_to_terminal()
    logging.getLogger("slm2_minimal.prepare.run").info("100% of 2")
    logging.getLogger("slm2_minimal.prepare.run").debug("not this")
    logging.getLogger("another").info("nor this")
    assert capsys.readouterr().out == "100% of 2\n"


def test_errors_of_the_terminal_are_not_swallowed(
    restored_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed:
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self) -> None:
            pass

    log_to_terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Closed())
        with pytest.raises(BrokenPipeError):
            restored_logger.info("nobody reads this")


@pytest.mark.parametrize(
    ("where", "code", "told"),
    [("| head -n 1", 0, ""), ("> /dev/full", 2, "No space left on device")],
)
def test_a_terminal_that_takes_no_more_lines(
    tmp_path: Path, where: str, code: int, told: str
) -> None:
    """A closed pipe ends the command quietly; a full disk is said in one line."""
    arguments = f"--data.prepared {tmp_path / 'out'} --prepare.workers 1"
    sources = """--data.sources '{de = {languages = ["de"], domains = ["recipes"]}}'"""
    command = f"{sys.executable} -m slm2_minimal.cli prepare tiny {arguments} {sources} {where}"
    script = f"set -o pipefail; {command}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (code, 1 if told else 0), result.stderr
    assert told in result.stderr
