"""The OpenVINO image encoder: independent images, no telemetry, no crash on signals. Its accuracy: `test_prepare`."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from blipcore.inference.openvino import OpenVinoEncoder, import_openvino
from blipcore.model.config import VisionConfig
from blipcore.model.vit import VisionTransformer

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")


@needs_openvino
@torch.inference_mode()
def test_int8_results_do_not_depend_on_the_other_images() -> None:
    torch.manual_seed(0)
    vit = VisionTransformer(VisionConfig(image_size=32, patch_size=8, width=32, depth=2, heads=2)).eval()
    encoder = OpenVinoEncoder(vit, torch.float32, int8=True)
    scales = torch.arange(1, 7)[:, None, None, None]
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * scales
    single = torch.cat([encoder(image[None]) for image in pixels])
    assert ((encoder(pixels) - single).norm() / single.norm()).item() < 1e-6


def test_a_missing_openvino_raises_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'capfilt\[openvino\]'"):
        import_openvino()


@needs_openvino
def test_openvino_is_imported_without_its_telemetry() -> None:
    import_openvino()
    assert sys.modules["openvino_telemetry"] is None


FREE_ON_ANOTHER_THREAD = """
import signal, threading
import torch
from blipcore.inference.openvino import OpenVinoEncoder
from blipcore.model.config import VisionConfig
from blipcore.model.vit import VisionTransformer

signal.signal(signal.SIGUSR1, lambda *_: print("received"))
encoders = [OpenVinoEncoder(VisionTransformer(VisionConfig(32, 8, 32, 2, 2)).eval())]
encoders[0](torch.zeros(1, 3, 32, 32))
thread = threading.Thread(target=encoders.clear)
thread.start()
thread.join()
signal.raise_signal(signal.SIGUSR1)
"""


@needs_openvino
def test_signals_arrive_after_another_thread_freed_an_encoder() -> None:
    command = [sys.executable, "-c", FREE_ON_ANOTHER_THREAD]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "received\n"), run.stderr
