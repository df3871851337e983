"""Ray on two hosts, made of network namespaces: a lost node or a cut link costs no shard."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from chaos_commands import ENTRIES
from chaos_runner import ROOT, Chaos

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(0)]

HOSTS = {"chaos-a": "10.77.0.1", "chaos-b": "10.77.0.2"}
PORT = 6479
RAY = str(Path(sys.executable).with_name("ray"))
# A node is given up after a few seconds instead of a minute.
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def on(host: str, *command: str, wait: bool = True) -> subprocess.Popen[bytes]:
    """Run a command on a host."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", host, *command],
        env=os.environ | SETTINGS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if wait:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output.decode()[-2000:]
    return process


def kill_all(host: str) -> None:
    pids = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout.split()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def cluster() -> Iterator[str]:
    """Start Ray with a CPU on each of two hosts; yield its address."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two network namespaces need root and iproute2")
    folder = tempfile.mkdtemp(prefix="ray-")  # short, because sockets are in it
    address = f"{HOSTS['chaos-a']}:{PORT}"
    a, b = HOSTS
    try:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "add", host], check=True)
        subprocess.run(["ip", "link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b], check=True)
        for host, ip in HOSTS.items():
            on(host, "ip", "addr", "add", f"{ip}/24", "dev", host)
            on(host, "ip", "link", "set", host, "up")
            on(host, "ip", "link", "set", "lo", "up")
        common = ("--num-cpus", "1", "--object-store-memory", str(100 << 20), "--disable-usage-stats")
        head = ("--head", "--port", str(PORT), "--temp-dir", folder, "--include-dashboard", "false")
        on(a, RAY, "start", *head, "--node-ip-address", HOSTS[a], *common)
        on(b, RAY, "start", "--address", address, "--node-ip-address", HOSTS[b], *common)
        yield address
    finally:
        for host in HOSTS:
            kill_all(host)
            subprocess.run(["ip", "netns", "del", host])
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("fault", ["node lost", "link cut"])
def test_a_fault_of_one_host_costs_no_shard(chaos: Chaos, cluster: str, fault: str) -> None:
    entry = next(entry for entry in ENTRIES if entry.name == "caption")
    chaos.learn(entry)
    chaos.prepare(entry)
    arguments = [argument.format(inputs=chaos.inputs, work=chaos.work) for argument in entry.arguments]
    command = [sys.executable, "-m", "capfilt", *arguments, "--engine", "ray", "--workers", "2"]
    first, second = HOSTS
    run = on(first, "env", f"RAY_ADDRESS={cluster}", *command, wait=False)
    deadline = time.monotonic() + 240
    while not list(chaos.work.glob("data/captions/*/0*.parquet")) and run.poll() is None:
        assert time.monotonic() < deadline, "no table in four minutes"
        time.sleep(0.05)
    if fault == "node lost":
        kill_all(second)
    else:
        on(second, "ip", "link", "set", second, "down")
    output = run.communicate(timeout=300)[0].decode()
    assert run.returncode == 0, output[-2000:]
    assert chaos.outputs(entry) == chaos.expected["caption"]
