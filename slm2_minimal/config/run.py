"""A whole run: one TOML file, and overrides laid over it."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from slm2_minimal.config.errors import ConfigError
from slm2_minimal.config.files import preset_path, read_tables
from slm2_minimal.config.overrides import lay_over
from slm2_minimal.config.paths import expand
from slm2_minimal.config.section import Section, Table, did_you_mean, nearest_multiple, section
from slm2_minimal.config.sections import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)
from slm2_minimal.config.sources import DataConfig, PrepareConfig


@section("run")
class RunConfig(Section):
    """A whole run. A table that is left out has its section's defaults."""

    model: ModelConfig = ModelConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    prepare: PrepareConfig = PrepareConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        length, batch = self.data.seq_len, self.train.global_batch_tokens
        if length > self.model.max_position_embeddings:
            raise ConfigError(
                f"data.seq_len = {length}: longer than the context, model.max_position_embeddings ="
                f" {self.model.max_position_embeddings}; shorten the one or raise the other"
            )

        # A batch is whole micro-batches
        micro_batch = self.train.micro_batch_size * length
        if batch % micro_batch:
            raise ConfigError(
                f"train.global_batch_tokens = {batch}: must be a multiple of micro_batch_size x"
                f" seq_len = {micro_batch}; the nearest is {nearest_multiple(batch, micro_batch)}"
            )

        if self.data.is_chat and self.prepare.contaminated == "cut":
            raise ConfigError(
                "prepare.contaminated = 'cut': would cut through a turn of a conversation; use drop"
            )

        # The schedule lasts as long as the run
        schedule, steps = self.schedule, self.train.steps
        falls_to_zero = schedule.cooldown_start is not None or schedule.min_rate == 0
        if falls_to_zero and schedule.end is not None and schedule.end < steps:
            raise ConfigError(
                f"train.steps = {steps}: goes on at a rate of 0 after the schedule's end at step"
                f" {schedule.end}; move the cooldown, or give the schedule's lengths as shares of"
                " train.steps, as in cooldown_start = 0.84, cooldown_steps = 0.16"
            )

        # Slices of matrices are whole
        slices = self.parallel.tensor_parallel
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            size = getattr(self.model, name)
            if size % slices:
                raise ConfigError(
                    f"parallel.tensor_parallel = {slices}: must divide model.{name} = {size}"
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
        path = Path(expand(str(source), "config"))
        tables = read_tables(path if path.suffix == ".toml" else preset_path(str(source)))
        for key, value in (overrides or {}).items():
            # copied, because a later key may change a table that this one gives
            lay_over(tables, key, copy.deepcopy(value))
        return cls.from_dict(tables)

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; also takes a TOML file's tables."""
        sections: dict[str, Any] = {}
        known = {kind.table_name: kind for kind in Table.__subclasses__()}
        for name in tables:
            if name not in known:
                raise ConfigError(f"[{name}]: unknown table; {did_you_mean(name, known)}")
            sections[name] = known[name].from_tables(tables)
        return cls(**sections)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers: what is written beside a checkpoint
        and compared on resume.
        """
        return dataclasses.asdict(self)


def first_difference(
    theirs: dict[str, Any], ours: dict[str, Any], prefix: str = ""
) -> tuple[str, Any, Any]:
    """(dotted field, their value, ours) of the first difference; ("", ...) for none."""
    for key in ours | theirs:
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            field, a, b = first_difference(a, b, f"{prefix}{key}.")
            if field:
                return field, a, b
        elif a != b:
            return f"{prefix}{key}", a, b
    return "", None, None
