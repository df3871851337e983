"""The cache of answers outlives processes and reports a file that it cannot use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from capfilt.errors import EngineError
from capfilt.vlm.answer_cache import AnswerCache, default_cache_path


def test_an_answer_outlives_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from capfilt.vlm.answer_cache import AnswerCache\n"
        "cache = AnswerCache(Path(sys.argv[1]))\n"
        "cache.put('key', {'text': 'a dog'})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "new" / "answers.sqlite"
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    cache = AnswerCache(path)
    assert cache.get("key") == {"text": "a dog"} and cache.get("other") is None
    cache.put("key", {"text": "a cat"})
    assert AnswerCache(path).get("key") == {"text": "a cat"}


def test_a_file_that_is_no_cache_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("something else, longer than the header of a database " * 10)
    with pytest.raises(ValueError, match=r"Cannot cache answers in .*file.* name another file with server\.cache"):
        AnswerCache(tmp_path / "file")


def test_a_cache_that_fails_during_a_run_ends_it(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "answers.sqlite")
    cache._connection.execute("DROP TABLE answers")
    with pytest.raises(EngineError, match=r"Cannot read the cache .*answers\.sqlite any more"):
        cache.get("key")
    with pytest.raises(EngineError, match=r"Cannot write the cache .*answers\.sqlite any more"):
        cache.put("key", {})


def test_the_default_file_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_path() == tmp_path / "capfilt" / "answers.sqlite"
