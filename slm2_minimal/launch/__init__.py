"""Before a run: will it fit, what will it cost, is anything wrong, how is it started.

In: a `RunConfig` and a number of GPUs, which need not be there. Out: a page of numbers
(`slm2 plan`), a list of what was checked (`slm2 train --check`), scripts for torchrun
and SLURM (`slm2 launch`), a report on this machine (`slm2 doctor`).

Read memory (bytes on a rank), planner (time, messages, money), check (everything that
can be known to be wrong), scripts and torchrun (what they start), launch. Chapter 8
plans, chapter 14 launches.
"""
