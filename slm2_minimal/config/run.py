"""A whole run: one TOML file, and overrides laid over it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from slm2_minimal.config.errors import ConfigError
from slm2_minimal.config.files import lay_over, preset_path, read_toml
from slm2_minimal.config.section import did_you_mean, section
from slm2_minimal.config.sections import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrepareConfig,
    ScheduleConfig,
    TrainConfig,
)


@section
class RunConfig:
    """A whole run: one TOML file. A table that is left out has its section's
    defaults.
    """

    _table = "run"

    model: ModelConfig = ModelConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        if self.data.seq_len > self.model.max_position_embeddings:
            raise ConfigError(
                f"data.seq_len = {self.data.seq_len}: longer than the context,"
                f" model.max_position_embeddings = {self.model.max_position_embeddings}; shorten"
                " the one or raise the other"
            )
        per_micro = self.train.micro_batch_size * self.data.seq_len
        if self.train.global_batch_tokens % per_micro:
            raise ConfigError(
                f"train.global_batch_tokens = {self.train.global_batch_tokens}: must be a multiple"
                f" of micro_batch_size x seq_len = {per_micro}; the nearest is"
                f" {max(1, round(self.train.global_batch_tokens / per_micro)) * per_micro}"
            )
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            if getattr(self.model, name) % self.parallel.tensor_parallel:
                raise ConfigError(
                    f"parallel.tensor_parallel = {self.parallel.tensor_parallel}: must divide"
                    f" model.{name} = {getattr(self.model, name)}"
                )

    @classmethod
    def preset(cls, name: str) -> Self:
        """The whole preset `name`."""
        return cls.load(preset_path(name))

    @classmethod
    def load(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> Self:
        """A preset name or a TOML path, with `{"section.field": value}` laid over it.

        Raises ConfigError for an unknown preset, an unreadable file, an unknown key, or
        a value that cannot be.
        """
        tables = read_toml(source if Path(source).suffix == ".toml" else preset_path(str(source)))
        for key, value in (overrides or {}).items():
            lay_over(
                tables, key, copy.deepcopy(value)
            )  # a later key may change a table that an earlier one gave
        return cls.from_dict(tables)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; also takes a TOML file's tables."""
        sections: dict[str, Any] = {}
        known: dict[str, Any] = {
            field.name: type(field.default) for field in dataclasses.fields(cls)
        }
        for name, table in tables.items():
            if name not in known:
                raise ConfigError(f"[{name}]: unknown table; {did_you_mean(name, known)}")
            sections[name] = known[name].from_table(table)
        return cls(**sections)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers: what is written beside a checkpoint
        and compared on resume.
        """
        return dataclasses.asdict(self)
