"""Where a run is: the one list of what a checkpoint holds beside its tensors."""

import dataclasses
import json
from dataclasses import field
from typing import Annotated, Any

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from slm2_minimal.distributed.checkpoint import DamagedCheckpoint
from slm2_minimal.train.guard import WINDOW

Count = Annotated[int, Field(ge=0, le=2**53)]  # JSON's whole numbers are exact up to there
Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(config=pydantic.ConfigDict(strict=True))
class Best:
    """The best validation so far, with its losses in nats per token."""

    step: Count
    mean: Finite
    losses: dict[str, Finite]


@dataclass(config=pydantic.ConfigDict(strict=True))
class RunState:
    """Everything that changes while a run goes on, and what it must have in common with
    the run that goes on from its checkpoint.
    """

    config: dict[str, Any]
    data_fingerprint: str
    dtype: str  # of matrix products
    tokenizer_fingerprint: str = ""  # empty in checkpoints of older versions
    step: Count = 0
    data_position: Count = 0  # sequences of the global order that have been read
    recent_losses: list[Finite] = field(default_factory=list)  # of good steps, for the guard
    best: Best | None = None

    def advance(self, loss: float) -> None:
        """Count a step that was made."""
        self.step += 1
        self.recent_losses = [*self.recent_losses, loss][-WINDOW:]

    def at(self, saved: "RunState") -> "RunState":
        """This run where the one that saved was; its best is this one's own."""
        return dataclasses.replace(
            self,
            step=saved.step,
            data_position=saved.data_position,
            recent_losses=saved.recent_losses,
        )

    def to_dict(self) -> dict[str, Any]:
        """What `state.json` holds."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any], where: str) -> "RunState":
        """The state in the content of the file `where`; other keys are passed over.

        Raises DamagedCheckpoint where a field is missing, of another type, or out of
        bounds.
        """
        names = [item.name for item in dataclasses.fields(cls)]
        fields = {name: content[name] for name in names if name in content}
        if fields.get("best") == {}:  # as older versions wrote none
            del fields["best"]
        try:
            return pydantic.TypeAdapter(cls).validate_json(json.dumps(fields))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise DamagedCheckpoint(
                f"{where}: {name} cannot be read ({first['msg']}); "
                "remove this checkpoint to go on from the one before"
            ) from None
