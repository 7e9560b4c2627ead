"""Training: one loop for the laptop and for 512 GPUs, told apart by the configuration.

In: a `RunConfig`, training data (`data/`), a model placed on the run's processes
(`distributed/`). Out: a folder with checkpoints, `metrics.jsonl` and TensorBoard files.

Read `schedule.py` (the learning rate), `optimizer.py` (AdamW, clipping),
`objective.py` (what is minimised), `step.py` (one step), `guard.py` (which steps are
not made), `state.py` (what a checkpoint holds), then `trainer.py`, the loop. `rules.py`
refuses what cannot be before it starts, `resume.py` says where it goes on, and
`signals.py`, `log.py`, `samples.py` and `profile.py` are what a user sees of it.
Chapters 4 (the schedule), 7 (training) and 9 (the full run).
"""
