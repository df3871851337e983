"""fsspec's memory as a remote file system, with failures on demand."""

from __future__ import annotations

from collections.abc import Callable

import fsspec
import pytest

from blipcore.io import storage
from blipcore.io.storage import Remote

MEMORY = type(fsspec.filesystem("memory"))


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> Remote:
    """A missing remote folder, different for each test."""
    return Remote(f"memory://{request.path.stem}/{request.node.name}")


@pytest.fixture
def fail_requests(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str, Exception], list[int]]:
    """Let each request of one kind fail a number of times first; returns a list with the call count."""
    monkeypatch.setattr(storage, "FIRST_WAIT", 0.0)

    def install(times: int, method: str, error: Exception) -> list[int]:
        original, remaining, calls = getattr(MEMORY, method), [times], [0]

        def fail(self: object, *args: object, **options: object) -> object:
            calls[0] += 1
            if remaining[0]:
                remaining[0] -= 1
                raise error
            remaining[0] = times
            return original(self, *args, **options)

        monkeypatch.setattr(MEMORY, method, fail)
        return calls

    return install


@pytest.fixture
def renaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the memory able to rename, like SFTP and HDFS; otherwise it is an object store."""

    def mv(self: fsspec.AbstractFileSystem, old: str, new: str) -> None:
        self.store[new] = self.store.pop(old)

    monkeypatch.setattr(MEMORY, "mv", mv)
