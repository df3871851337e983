"""`capfilt doctor`: checks whether this machine can run capfilt, with a remedy for each problem.

Each check returns a `Finding` and changes nothing.
"""

from __future__ import annotations

import io
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
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

from blipcore.io.messages import one_line

GOOD: Final = "ok"
# Something optional is missing or slow.
NOTE: Final = "note"
# capfilt does not work until this is fixed.
BAD: Final = "bad"
MARKS = {GOOD: "✓", NOTE: "–", BAD: "✗"}
# Extra of pyproject.toml -> (modules that it installs, purpose).
EXTRA_MODULES = {
    "demo": (("resvg_py", "pycocoevalcap"), "capfilt demo"),
    "eval": (("pycocoevalcap",), "caption scores"),
    "datasets": (("datasets",), "packing of saved Hugging Face datasets"),
    "openai": (("openai",), "captioners behind a server"),
    "heif": (("pillow_heif",), "HEIC pictures"),
    "jxl": (("pillow_jxl",), "JPEG XL pictures"),
    "peft": (("peft",), "LoRA captioners"),
    "text": (("sentencex", "num2words"), "--sentences, and the numbers that fuse checks"),
    "vectors": (("faiss",), "capfilt select"),
    "openvino": (("openvino",), "faster image encoders on a CPU"),
    "ray": (("ray",), "--engine ray"),
    "s3": (("s3fs",), "s3:// URLs"),
    "wandb": (("wandb",), "training curves on Weights & Biases"),
}
HOSTS = ("en.wikipedia.org", "github.com", "www.w3.org", "pypi.org", "huggingface.co", "www.python.org")
DNS_TIMEOUT = 3.0
SLOW_DNS_SECONDS = 0.2
MIN_FREE_GB = 20
MIN_OPEN_FILES = 4096
MIN_SHARED_MB = 512


@dataclass(frozen=True)
class Finding:
    """The result of a check, with a remedy if there is a problem."""

    name: str
    state: Literal["ok", "note", "bad"]
    detail: str
    advice: str = ""


def run_checks(folder: str = ".", hosts: Iterable[str] = HOSTS, *, download: bool = True) -> list[Finding]:
    """Run all checks; `folder` is for the data. A check that raises gives a bad finding."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": check_python,
        "torch": check_torch_build,
        "device": check_device,
        "torchvision": check_torchvision,
        "memory": check_memory,
        "disk": partial(check_disk, folder),
        "open files": check_open_files,
        "dns": partial(check_dns, hosts),
        "img2dataset": partial(check_img2dataset, download),
        "java": check_java,
        **{f"extra {name}": partial(check_extra, name) for name in EXTRA_MODULES},
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.append(check())
        except Exception as error:
            # A broken installation may raise anything.
            findings.append(Finding(name, BAD, f"{type(error).__name__}: {one_line(error)}"))
    return findings


def summarize_findings(findings: list[Finding]) -> dict[str, Any]:
    """Return the summary for `--json`."""
    failed = [finding.name for finding in findings if finding.state == BAD]
    return {
        "stage": "doctor",
        "ready": not failed,
        "failed": failed,
        "findings": [asdict(finding) for finding in findings],
    }


def format_findings(findings: list[Finding]) -> list[str]:
    """Return one line per finding, one more per remedy, and a conclusion."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]} {finding.name:<{width}}  {finding.detail}")
        if finding.advice:
            lines.append(f"  {'':<{width}}  -> {finding.advice}")
    failed = sum(finding.state == BAD for finding in findings)
    lines.append(f"Problems to fix before capfilt works here: {failed}." if failed else "This machine is ready.")
    return lines


# ---------------------------------------------------------------------------------------------------- checks


def check_python() -> Finding:
    """Check the operating system, and the Python version against those of the package metadata."""
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform == "win32":
        return Finding("python", BAD, detail, "capfilt needs the file locks of Linux or macOS: run it in WSL 2")
    classifiers = metadata.metadata("capfilt").get_all("Classifier") or []
    tested = [(3, int(text.rpartition(".")[2])) for text in classifiers if ":: Python :: 3." in text]
    if sys.version_info[:2] in tested:
        return Finding("python", GOOD, detail)
    oldest, newest = (f"{major}.{minor}" for major, minor in (min(tested), max(tested)))
    if sys.version_info[:2] < min(tested):
        return Finding("python", BAD, detail, f"capfilt requires Python {oldest} or newer")
    return Finding("python", NOTE, detail, f"capfilt is tested on Python {oldest} to {newest}")


def check_torch_build() -> Finding:
    """Check that torch is installed and built for the GPU of this machine."""
    if find_spec("torch") is None:
        return Finding("torch", BAD, "not installed", "pip install torch")
    import torch

    build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    detail, gpus = f"{torch.__version__}, {build}", nvidia_gpus()
    if gpus and not torch.version.cuda:
        advice = "install a build with CUDA: https://pytorch.org/get-started/locally"
        return Finding("torch", BAD, f"{detail}, but this machine has {gpus[0]}", advice)
    if gpus and not torch.cuda.is_available():
        advice = "the driver is too old for this build (see nvidia-smi), or CUDA_VISIBLE_DEVICES hides the GPU"
        return Finding("torch", BAD, f"{detail}, cannot use {gpus[0]}", advice)
    return Finding("torch", GOOD, detail)


def nvidia_gpus() -> list[str]:
    """Return name and memory of each GPU that the NVIDIA driver finds."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return result.stdout.strip().splitlines() if result.returncode == 0 else []


def check_device() -> Finding:
    """Report the device and number format that `--device auto` and `--dtype auto` select."""
    import torch

    from blipcore.device import count_cores, resolve_dtype

    if torch.cuda.is_available():
        number, gpu = torch.cuda.device_count(), torch.cuda.get_device_properties(0)
        detail = f"{number} x {gpu.name}, {gpu.total_memory / 1e9:.0f} GB, {resolve_dtype('cuda:0')}"
        return Finding("device", GOOD, detail)
    dtype = resolve_dtype("cpu")
    hardware = "in hardware" if dtype == "bf16" else "(no bf16 in hardware)"
    detail = f"CPU, {count_cores()} cores, {dtype} {hardware}"
    return Finding("device", NOTE, detail, "without a GPU the demo runs well; millions of pictures take long")


def check_torchvision() -> Finding:
    """Check that torchvision can be imported, for open_clip and some models of transformers."""
    if find_spec("torchvision") is None:
        advice = "needed for --clip and for some captioners of transformers: pip install torchvision"
        return Finding("torchvision", NOTE, "not installed", advice)
    result = _run_python("import torchvision; print(torchvision.__version__)")
    if result.returncode == 0:
        return Finding("torchvision", GOOD, result.stdout.strip())
    error = _last_line(result.stderr)
    if "torchvision::" in error:
        advice = "capfilt works around it; other programs need a torchvision of the same build as torch"
        return Finding("torchvision", NOTE, f"built for another torch ({error})", advice)
    return Finding("torchvision", BAD, f"cannot be imported ({error})", "install a torchvision that matches torch")


def check_memory() -> Finding:
    """Check the memory, and the shared memory through which loader workers pass batches."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Finding("memory", GOOD, f"{total:.0f} GB")
    shared_mb = shutil.disk_usage(shared).total / 1e6
    detail = f"{total:.0f} GB, {shared_mb:,.0f} MB shared memory"
    if shared_mb < MIN_SHARED_MB:
        return Finding("memory", NOTE, detail, "loader workers need more: docker run --shm-size=8g, or --workers 0")
    return Finding("memory", GOOD, detail)


def check_disk(folder: str) -> Finding:
    """Check free space and write access at the data's location."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    if not os.access(path, os.W_OK):
        return Finding("disk", BAD, f"{path} is not writable", "choose another folder, or set --out for each stage")
    free = shutil.disk_usage(path).free / 1e9
    detail = f"{free:,.0f} GB free at {path}"
    if free < MIN_FREE_GB:
        return Finding("disk", NOTE, detail, "little space for pictures: choose another disk")
    return Finding("disk", GOOD, detail)


def check_open_files() -> Finding:
    """Check the limit on open files: img2dataset opens up to 64 connections per process."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= MIN_OPEN_FILES:
        return Finding("open files", GOOD, f"up to {soft:,}")
    return Finding("open files", NOTE, f"up to {soft:,}", f"for large downloads: ulimit -n {min(hard, 65536)}")


def check_dns(hosts: Iterable[str], timeout: float = DNS_TIMEOUT) -> Finding:
    """Measure the time to resolve host names, the first limit of large downloads."""
    seconds: dict[str, float | None] = dict.fromkeys(hosts)

    def resolve(host: str) -> None:
        start = time.monotonic()
        try:
            socket.getaddrinfo(host, 443)
        except OSError:
            return
        seconds[host] = time.monotonic() - start

    threads = [threading.Thread(target=resolve, args=(host,), daemon=True) for host in seconds]
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        # getaddrinfo has no timeout: a thread may continue
        thread.join(max(0.0, deadline - time.monotonic()))
    answers = [value for value in seconds.values() if value is not None]
    if not answers:
        advice = "no network or no resolver: capfilt download needs both"
        return Finding("dns", NOTE, "no host name could be resolved", advice)
    median = statistics.median(answers)
    detail = f"{median * 1000:.0f} ms per name, {len(answers)} of {len(seconds)} resolved"
    if len(answers) < len(seconds) or median > SLOW_DNS_SECONDS:
        advice = "for large downloads run a local resolver, such as knot-resolver or unbound"
        return Finding("dns", NOTE, detail, advice)
    return Finding("dns", GOOD, detail)


def check_img2dataset(download: bool) -> Finding:
    """Check that img2dataset is installed and imports; with `download`, that it downloads a picture."""
    if find_spec("img2dataset") is None:
        return Finding("img2dataset", NOTE, "not installed", "for capfilt download: pip install img2dataset")
    version = metadata.version("img2dataset")
    result = _run_python("import img2dataset")
    if result.returncode:
        detail = f"{version} cannot be imported ({_last_line(result.stderr)})"
        return Finding("img2dataset", BAD, detail, "pip install --upgrade img2dataset")
    if not download:
        return Finding("img2dataset", GOOD, version)
    start = time.monotonic()
    error = download_test_picture()
    if error is not None:
        detail = f"{version} cannot download a picture from this machine ({error})"
        return Finding("img2dataset", BAD, detail, "run capfilt download on a small list to see the full error")
    return Finding("img2dataset", GOOD, f"{version}, downloaded a picture in {time.monotonic() - start:.0f} s")


def download_test_picture() -> str | None:
    """Download a picture from a local server with `capfilt download`; return the error, or None if it worked."""
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(picture, "PNG")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            exists = self.path == "/picture.png"
            self.send_response(200 if exists else 404)
            self.end_headers()
            if exists:
                self.wfile.write(picture.getvalue())

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    with tempfile.TemporaryDirectory() as folder, ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = Path(folder) / "urls.txt"
        urls.write_text(f"http://127.0.0.1:{server.server_port}/picture.png\n", encoding="utf-8")
        command = [sys.executable, "-m", "capfilt", "download", str(urls), str(Path(folder) / "data")]
        options = ["--allow-private", "--workers", "1", "--json"]
        result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=False)
        server.shutdown()
    if result.returncode == 0 and json.loads(result.stdout)["ok"] == 1:
        return None
    return _last_line(result.stderr) or f"exit code {result.returncode}"


def check_java() -> Finding:
    """Check for Java, which METEOR, SPICE and COCO's own tokenizer need."""
    if shutil.which("java") is None:
        advice = "for METEOR and SPICE: apt-get install default-jre-headless"
        return Finding("java", NOTE, "not installed", advice)
    result = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60, check=False)
    version = re.search(r'version "([^"]+)"', result.stderr + result.stdout)
    if result.returncode or version is None:
        detail = f"java -version fails ({one_line(result.stderr)})"
        return Finding("java", NOTE, detail, "reinstall Java to get METEOR and SPICE")
    return Finding("java", GOOD, version[1])


def check_extra(name: str) -> Finding:
    """Check that the modules of an extra are installed."""
    modules, purpose = EXTRA_MODULES[name]
    if all(find_spec(module) is not None for module in modules):
        return Finding(f"extra {name}", GOOD, purpose)
    return Finding(f"extra {name}", NOTE, f"{purpose}: not installed", f"pip install 'capfilt[{name}]'")


def _run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, where a broken import does no harm."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


def _last_line(text: str) -> str:
    return one_line(text.strip().rpartition("\n")[2])
