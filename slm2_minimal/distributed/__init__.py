"""Where tensors live: on a device, among ranks, on a disk.

In: a run's configuration, and what torchrun says in the environment. Out: a `World`
(who this process is), a `Replica` (its part of the model), and checkpoints that any
number of ranks can read. The model itself knows nothing of this room.

Read device (CPU or GPU, number formats, speed), world (processes and the few numbers
they tell each other), parallel (the five strategies), checkpoint (whole or absent),
pretrained (weights from wherever they lie).
Chapter 8 builds the strategies by hand; chapter 7 saves and resumes.
"""
