"""Answers that were paid for, kept for ever: a key in, what a server once said to it out, in one SQLite file.

Several processes may share the file; it has to lie on a disk of their own machine. An answer is there as soon as `put`
returns, whatever happens to the process then.
"""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from capfilt.errors import EngineError


def usual_place() -> Path:
    """The file for all data sets of a user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capfilt" / "answers.sqlite"


class Answers:
    """The kept answers; to be used from one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID")
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"Answers cannot be kept in {path} ({error}); name another file as server.cache."
            ) from None

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer to `key`, None where there is none yet."""
        try:
            row = self._file.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise EngineError(f"{self.path} cannot be read any more ({error}).") from None
        return json.loads(row[0]) if row else None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        """Keep an answer."""
        try:
            self._file.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
        except sqlite3.Error as error:
            raise EngineError(f"Answers cannot be kept in {self.path} any more ({error}).") from None
