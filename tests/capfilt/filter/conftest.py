"""A fixture that forbids reading pictures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from capfilt.pictures.read_ahead import ReadAhead


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which reading a picture fails the test."""

    def forbid() -> None:
        monkeypatch.setattr(ReadAhead, "__iter__", lambda self: pytest.fail("a picture was read"))

    return forbid
