"""Typed, frozen configurations and the errors that a user can cause.

In: a preset's name or a TOML file with a table for each section, and overrides from the
command line. Out: a `RunConfig`, checked as a whole. The toy and the full run differ in
that file only, and an unknown key is refused, so that none is ignored in silence.

Read `sections` and `sources` for what can be set, `run` for how it comes together,
`files` for presets and bases, `overrides` for what is typed over them, `paths` for the
rule of all paths, `section` for the machinery, `keys` for the list that --help and the
book's reference page show. Nothing of ours stands below this room. Chapter 14 is about
a run's file.
"""

from slm2_minimal.config.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    UserError,
)
from slm2_minimal.config.files import PRESET_DIR, preset_names, preset_path, read_toml
from slm2_minimal.config.overrides import parse_overrides
from slm2_minimal.config.run import RunConfig
from slm2_minimal.config.sections import (
    CHECKPOINTING,
    IGNORE,
    SHARDED,
    STRATEGIES,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)
from slm2_minimal.config.sources import (
    BenchmarkConfig,
    DataConfig,
    PrepareConfig,
    SourceConfig,
    StageConfig,
)

__all__ = ["CHECKPOINTING", "IGNORE", "PRESET_DIR", "SHARDED", "STRATEGIES"]
__all__ += ["CheckpointError", "ConfigError", "DataError", "MissingExtraError", "UserError"]
__all__ += ["BenchmarkConfig"]
__all__ += ["DataConfig", "ModelConfig", "OptimizerConfig", "ParallelConfig", "PrepareConfig"]
__all__ += ["RunConfig", "ScheduleConfig", "SourceConfig", "StageConfig", "TrainConfig"]
__all__ += ["parse_overrides", "preset_names", "preset_path", "read_toml"]
