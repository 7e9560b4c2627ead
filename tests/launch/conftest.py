"""Programs in the place of SLURM's, for the tests of launching."""

import os
from pathlib import Path

import pytest

SLURM = {
    "scontrol": (
        'echo "scontrol $*" >> {told}\n[ "$1" != show ] || printf "%s\n" $FIRST_NODE node2\n'
    ),
    # As SLURM does it, the signal goes to the tasks of the step; a real srun that gets
    # it kills them.
    "scancel": 'echo "scancel $*" >> {told}\nkill -TERM $(cat {tasks})\n',
    "srun": (
        """trap "kill -KILL 0" TERM
for _ in $(seq $TASKS); do "${{@: -2}}" & tasks="$tasks $!"; done
echo $tasks > {tasks}
for task in $tasks; do wait $task || code=$?; done
exit ${{code:-0}}
"""
    ),
    "sbatch": 'echo "sbatch $*" >> {told}\necho "Submitted batch job 7"\n',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs in the place of SLURM's; the file in which they note what they were
    told.
    """
    (tmp_path / "bin").mkdir()
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).write_text(
            "#!/bin/bash\n" + text.format(told=tmp_path / "told", tasks=tmp_path / "tasks")
        )
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "10042",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "FIRST_NODE": "node1",
        "TASKS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "told"
