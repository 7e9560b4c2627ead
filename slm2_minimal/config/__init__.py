"""Typed, frozen configurations and the errors that a user can cause.

The ground floor: it imports nothing of ours. A run is described by one TOML file with a
table per section (`[model]`, `[schedule]`, `[optimizer]`, `[data]`, `[prepare]`,
`[parallel]`, `[train]`); the toy and the full run differ in that file only. Unknown
keys are refused, so that a misspelt one cannot be ignored in silence.
"""

from slm2_minimal.config.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    UserError,
)
from slm2_minimal.config.files import (
    PRESET_DIR,
    parse_overrides,
    preset_names,
    preset_path,
    read_toml,
)
from slm2_minimal.config.run import RunConfig
from slm2_minimal.config.sections import (
    CHECKPOINTING,
    IGNORE,
    SHARDED,
    STRATEGIES,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrepareConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
    TrainConfig,
)

__all__ = [
    "CHECKPOINTING", "IGNORE", "PRESET_DIR", "SHARDED", "STRATEGIES", "CheckpointError", "ConfigError", "DataConfig", "DataError",
    "MissingExtraError", "ModelConfig", "OptimizerConfig", "ParallelConfig", "PrepareConfig", "RunConfig", "ScheduleConfig",
    "SourceConfig", "StageConfig", "TrainConfig", "UserError", "parse_overrides", "preset_names", "preset_path", "read_toml",
]  # fmt: skip
