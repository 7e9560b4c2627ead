"""The one line that a user's error says, for tests of what it says."""

from collections.abc import Callable
from functools import partial

import pytest

from slm2_minimal.config import ConfigError, DataError, UserError


def complaint(call: Callable[[], object], kind: type[Exception] = UserError) -> str:
    """The message of the error of this kind that `call` raises; it must be one line."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message == message.strip()
    return message


config_error = partial(complaint, kind=ConfigError)
data_error = partial(complaint, kind=DataError)
