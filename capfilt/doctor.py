"""This machine in, one screen out: what works, what does not, and what to do about it.

Each check is a function that returns a `Finding`: "ok", "could be better" (a note: something optional is missing or
slow) or "must be mended". None of them changes anything; the last one fetches a picture from a server of its own.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

GOOD, NOTE, BAD = "ok", "note", "bad"
MARKS = {GOOD: "✓", NOTE: "–", BAD: "✗"}
# Extra -> (modules that it brings, what it is for); the names are those of pyproject.toml.
EXTRAS = {
    "demo": (("resvg_py", "pycocoevalcap"), "capfilt demo"),
    "eval": (("pycocoevalcap",), "caption scores"),
    "datasets": (("datasets",), "packing saved Hugging Face datasets"),
    "openai": (("openai",), "captioners behind a server"),
    "openvino": (("openvino",), "faster image encoders on a CPU"),
    "ray": (("ray",), "--engine ray"),
    "s3": (("s3fs",), "s3:// places"),
    "wandb": (("wandb",), "training curves on Weights & Biases"),
}
HOSTS = ("en.wikipedia.org", "github.com", "www.w3.org", "pypi.org", "huggingface.co", "www.python.org")
DNS_SECONDS = 3.0
FREE_GB, OPEN_FILES, SHARED_MB = 20, 4096, 512


@dataclass(frozen=True)
class Finding:
    """What a check has found, and what to do if it is not good."""

    name: str
    state: Literal["ok", "note", "bad"]
    found: str
    advice: str = ""


def examine(folder: str = ".", hosts: Iterable[str] | None = None, *, fetch: bool = True) -> list[Finding]:
    """Run every check; `folder` is where the data will lie. A check that fails itself is a finding too."""
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("python", python),
        ("torch", torch_build),
        ("device", device),
        ("torchvision", torchvision),
        ("memory", memory),
        ("disk", lambda: disk(folder)),
        ("open files", open_files),
        ("dns", lambda: dns(HOSTS if hosts is None else hosts)),
        ("img2dataset", lambda: img2dataset(fetch)),
        ("java", java),
        *((f"extra {name}", lambda name=name: extra(name)) for name in EXTRAS),
    ]
    found = []
    for name, check in checks:
        try:
            found.append(check())
        except Exception as error:  # whatever is broken here is what this command is for
            found.append(Finding(name, BAD, f"{type(error).__name__}: {_one_line(str(error))}"))
    return found


def report(findings: list[Finding]) -> dict[str, Any]:
    """The summary of the command."""
    bad = [finding.name for finding in findings if finding.state == BAD]
    return {"stage": "doctor", "ready": not bad, "mend": bad, "findings": [asdict(finding) for finding in findings]}


def as_lines(findings: list[Finding]) -> list[str]:
    """One line a finding, and one more where something can be done."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]} {finding.name:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"  {'':<{width}}  -> {finding.advice}")
    bad = sum(finding.state == BAD for finding in findings)
    lines.append(f"{bad} to be mended before capfilt works here." if bad else "This machine is ready.")
    return lines


# ---------------------------------------------------------------------------------------------------- the checks


def python() -> Finding:
    """The interpreter."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Finding("python", GOOD, found)
    return Finding("python", BAD, found, "capfilt is for Python 3.11 and 3.12")


def torch_build() -> Finding:
    """Whether torch is there, and built for the GPU that is there."""
    if find_spec("torch") is None:
        return Finding("torch", BAD, "not installed", "pip install torch")
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    found, gpus = f"{torch.__version__}, built {built}", nvidia_gpus()
    if gpus and not torch.version.cuda:
        advice = "install a build with CUDA: https://pytorch.org/get-started/locally"
        return Finding("torch", BAD, f"{found}, but this machine has {gpus[0]}", advice)
    if gpus and not torch.cuda.is_available():
        advice = "the driver is too old for this build, or hidden by CUDA_VISIBLE_DEVICES: nvidia-smi names both"
        return Finding("torch", BAD, f"{found}, cannot use {gpus[0]}", advice)
    return Finding("torch", GOOD, found)


def nvidia_gpus() -> list[str]:
    """Names of the GPUs that the NVIDIA driver knows of."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def device() -> Finding:
    """What `--device auto` and `--dtype auto` mean here."""
    import torch

    from blipcore.device import resolve_dtype

    if torch.cuda.is_available():
        number, about = torch.cuda.device_count(), torch.cuda.get_device_properties(0)
        found = f"{number} x {about.name}, {about.total_memory / 1e9:.0f} GB, {resolve_dtype('cuda:0')}"
        return Finding("device", GOOD, found)
    cores, dtype = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        resolve_dtype("cpu"),
    )
    found = f"CPU, {cores} cores, {dtype}"
    if dtype == "bf16":
        return Finding(
            "device", NOTE, f"{found} in hardware", "no GPU: fine for the demo, slow for millions of pictures"
        )
    return Finding("device", NOTE, f"{found}: no bf16 in hardware", "no GPU: fine for the demo, slow for more")


def torchvision() -> Finding:
    """open_clip and transformers' picture processors import torchvision, which must be built like torch."""
    if find_spec("torchvision") is None:
        return Finding(
            "torchvision",
            NOTE,
            "not installed",
            "only --clip and some models of others need it: pip install torchvision",
        )
    done = _python("import torchvision; print(torchvision.__version__)")
    if done.returncode == 0:
        return Finding("torchvision", GOOD, done.stdout.strip())
    last = _one_line(done.stderr.strip().rpartition("\n")[2])
    advice = "capfilt gets around it; other programs need a torchvision of the same build as torch"
    if "torchvision::" in last:
        return Finding("torchvision", NOTE, f"built for another torch ({last})", advice)
    return Finding("torchvision", BAD, f"cannot be imported ({last})", "pip install a torchvision that fits torch")


def memory() -> Finding:
    """Memory, and the part of it that data loaders' workers hand batches through."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Finding("memory", GOOD, f"{total:.0f} GB")
    size = shutil.disk_usage(shared).total / 1e6
    found = f"{total:.0f} GB, {size:,.0f} MB of it for sharing"
    if size < SHARED_MB:
        return Finding("memory", NOTE, found, "loader workers need more: docker run --shm-size=8g, or --workers 0")
    return Finding("memory", GOOD, found)


def disk(folder: str) -> Finding:
    """Room where the data will lie."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free / 1e9
    found = f"{free:,.0f} GB free at {path}"
    if not os.access(path, os.W_OK):
        return Finding("disk", BAD, f"{path} cannot be written to", "name another folder, or give stages --out")
    return (
        Finding("disk", GOOD, found)
        if free >= FREE_GB
        else Finding("disk", NOTE, found, "little for pictures: name another disk")
    )


def open_files() -> Finding:
    """Connections are files: img2dataset holds up to 64 a process."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= OPEN_FILES:
        return Finding("open files", GOOD, f"up to {soft:,}")
    return Finding("open files", NOTE, f"up to {soft:,}", f"for large downloads: ulimit -n {min(hard, 65536)}")


def dns(hosts: Iterable[str]) -> Finding:
    """How fast names become addresses: in a large download that is the first thing to give way."""
    seconds: dict[str, float | None] = dict.fromkeys(hosts)

    def ask(host: str) -> None:
        start = time.monotonic()
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            return
        seconds[host] = time.monotonic() - start

    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in seconds]
    deadline = time.monotonic() + DNS_SECONDS
    for thread in threads:
        thread.start()
    for thread in threads:  # a resolver that does not answer would hold us for half a minute
        thread.join(max(0.0, deadline - time.monotonic()))
    answers = [value for value in seconds.values() if value is not None]
    if not answers:
        return Finding(
            "dns", NOTE, "no name could be looked up", "no network, or no resolver: capfilt download needs both"
        )
    found = f"{statistics.median(answers) * 1000:.0f} ms a name, {len(answers)} of {len(seconds)} answered"
    if len(answers) < len(seconds) or statistics.median(answers) > 0.2:
        return Finding(
            "dns", NOTE, found, "for large downloads run a resolver of your own, such as knot-resolver or unbound"
        )
    return Finding("dns", GOOD, found)


def img2dataset(fetch: bool) -> Finding:
    """The downloader: installed, importable, and able to fetch a picture from a server on this machine."""
    if find_spec("img2dataset") is None:
        return Finding("img2dataset", BAD, "not installed", "pip install img2dataset")
    version = metadata.version("img2dataset")
    done = _python("import img2dataset")
    if done.returncode:
        last = _one_line(done.stderr.strip().rpartition("\n")[2])
        return Finding(
            "img2dataset", BAD, f"{version} cannot be imported ({last})", "pip install --upgrade img2dataset"
        )
    if not fetch:
        return Finding("img2dataset", GOOD, version)
    start = time.monotonic()
    why = _fetch_one()
    if why is None:
        return Finding("img2dataset", GOOD, f"{version}, fetched a picture in {time.monotonic() - start:.0f} s")
    return Finding(
        "img2dataset",
        BAD,
        f"{version} could not fetch a picture from this machine ({why})",
        "capfilt download says more",
    )


def _fetch_one() -> str | None:
    """Why a picture on this machine does not come through `capfilt download`; None when it does."""
    import io

    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(picture, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/picture.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(picture.getvalue())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with tempfile.TemporaryDirectory() as folder, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = Path(folder) / "urls.txt"
        urls.write_text(f"http://127.0.0.1:{server.server_port}/picture.png\n", encoding="utf-8")
        command = ["-m", "capfilt", "download", str(urls), str(Path(folder) / "data"), "--allow-private", "--json"]
        done = subprocess.run(
            [sys.executable, *command, "--workers", "1"], capture_output=True, text=True, timeout=300, check=False
        )
        server.shutdown()
    if done.returncode == 0 and json.loads(done.stdout)["ok"] == 1:
        return None
    return _one_line(done.stderr.strip().rpartition("\n")[2]) or f"exit code {done.returncode}"


def java() -> Finding:
    """METEOR, SPICE and COCO's own tokenizer are Java programs."""
    if shutil.which("java") is None:
        return Finding(
            "java", NOTE, "not installed", "METEOR and SPICE are left out: apt-get install default-jre-headless"
        )
    done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60, check=False)
    version = re.search(r'version "([^"]+)"', done.stderr + done.stdout)
    if done.returncode or version is None:
        return Finding("java", NOTE, f"java -version fails ({_one_line(done.stderr)})", "METEOR and SPICE are left out")
    return Finding("java", GOOD, version[1])


def extra(name: str) -> Finding:
    """An optional part of capfilt."""
    modules, purpose = EXTRAS[name]
    missing = [module for module in modules if find_spec(module) is None]
    if not missing:
        return Finding(f"extra {name}", GOOD, purpose)
    return Finding(f"extra {name}", NOTE, f"{purpose}: not installed", f"pip install 'capfilt[{name}]'")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter: what an import breaks or heals in it stays there."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:160]
