"""A permanent cache of a server's paid answers, in one SQLite file.

Several processes may share the file, which must be on a local disk. Once `put` returns, an answer survives a kill.
"""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

from capfilt.errors import EngineError


def default_cache_path() -> Path:
    """Return the file that all data sets of a user share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "capfilt" / "answers.sqlite"


class AnswerCache:
    """Answers by key, for use from one thread."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; ValueError if that fails."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise ValueError(
                f"Cannot cache answers in {path} ({error}); name another file with server.cache."
            ) from None

    def get(self, key: str) -> Any:
        """Return the answer, or None if there is none or its row is no JSON."""
        try:
            row = self._connection.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise EngineError(f"Cannot read the cache {self.path} any more ({error}).") from None
        try:
            return json.loads(row[0]) if row else None
        except (TypeError, ValueError, RecursionError):
            return None

    def put(self, key: str, answer: dict[str, Any]) -> None:
        try:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, json.dumps(answer)))
        except sqlite3.Error as error:
            raise EngineError(f"Cannot write the cache {self.path} any more ({error}).") from None
