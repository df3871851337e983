"""A list of a million rows in any format is split and started in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = 1_000_000
CAPTION = "a caption of usual length, as web pages have them for their pictures, number {}"


def rows() -> list[tuple[str, str]]:
    # The port is closed, so each connection is refused at once, and the run is about the list.
    return [(f"http://127.0.0.1:9/some/path/of/usual/length/{n}.jpg", CAPTION.format(n)) for n in range(ROWS)]


def save(path: Path) -> None:
    kind = path.suffix
    if kind == ".parquet":
        urls, captions = zip(*rows(), strict=True)
        pq.write_table(pa.table({"url": urls, "caption": captions}), path)
        return
    with open(path, "w") as file:
        if kind == ".csv":
            file.write("url,caption\n")
            file.writelines(f'"{url}","{text}"\n' for url, text in rows())
        elif kind == ".jsonl":
            file.writelines(json.dumps({"url": url, "caption": text}) + "\n" for url, text in rows())
        else:
            file.write("[" + ",".join(json.dumps({"url": url, "caption": text}) for url, text in rows()) + "]")


def memory_of_tree(pid: int) -> int:
    """Return the bytes of a process and its children; shared pages count once per process."""
    total = 0
    with suppress(OSError):
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory_of_tree(int(child)) for child in (task / "children").read_text().split())
    return total


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "json"])
def test_a_million_rows(tmp_path: Path, kind: str) -> None:
    save(tmp_path / f"list.{kind}")
    command = [sys.executable, "-m", "capfilt", "download", f"list.{kind}", "data", "--allow-private", "--retries", "0"]
    start, peak, started = time.monotonic(), 0, 0.0
    with open(tmp_path / "log", "wb") as log_file:
        process = subprocess.Popen([*command, "--json"], cwd=tmp_path, stdout=log_file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, memory_of_tree(process.pid))
            if not started and any(tmp_path.glob("data/.staging/fetched/a*")):
                started = time.monotonic() - start
            time.sleep(0.1)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 1, log
    assert "only 0 of the first 20000 rows could be fetched: 20000 connection" in log
    assert len(list((tmp_path / "data").glob(".staging/rows/*.parquet"))) == ROWS // 10_000
    print(f"\n{kind}: started after {started:.0f} s, peak {peak / 2**20:.0f} MiB")
    assert peak < 10**9
