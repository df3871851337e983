"""Batches of a stream in worker processes: the same order for any number, and signals."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from picture_shards import eval_stream, write_shard_set

from blipcore.data import loader
from blipcore.data.loader import make_loader
from blipcore.data.stream import Stream
from blipcore.data.transforms import TrainTransform


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_the_order_of_one_process(tmp_path, workers) -> None:
    write_shard_set(tmp_path, [5, 9, 7], broken=("00001", "02003"))

    def batches(count: int, start: int) -> list[tuple]:
        stream = Stream([str(tmp_path)], TrainTransform(4, 0.2, True, 0.5), 3)
        pairs = make_loader(stream, list, 4, 4 * start, 12 - start, count)
        return [([(s["key"], s["text"], s["image"].tolist()) for s in batch], problems) for batch, problems in pairs]

    expected, batches_of_workers = batches(0, 0), batches(workers, 0)
    assert [samples for samples, _ in batches_of_workers] == [samples for samples, _ in expected]
    assert {name for _, problems in batches_of_workers for name in problems} == {"00000.tar/00001", "00002.tar/02003"}
    assert [samples for samples, _ in batches(workers, 5)] == [samples for samples, _ in expected[5:]]


def test_a_temporary_folder_too_long_for_sockets_is_refused(tmp_path, monkeypatch) -> None:
    write_shard_set(tmp_path, [1])
    stream = Stream([str(tmp_path)], TrainTransform(4, 0.2, True, 0.5), 3)
    monkeypatch.setattr(loader.util, "get_temp_dir", lambda: str(tmp_path / ("long" * 30) / "pymp-12345678"))
    with pytest.raises(ValueError, match="path too long for the sockets of data workers: set TMPDIR"):
        make_loader(stream, list, 4, 0, 1, workers=1)


START_METHODS = ("fork", "spawn") if sys.platform == "linux" else ("spawn",)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not give the sender of a signal")
@pytest.mark.parametrize("method", START_METHODS)
def test_workers_ignore_signals_except_from_their_parent(tmp_path, monkeypatch, method) -> None:
    """Signals arrive while a spawned worker imports torch, and later."""
    monkeypatch.setattr(loader, "_start_method", lambda: method)
    batches = iter(make_loader(eval_stream(write_shard_set(tmp_path, [5])), list, 2, 0, 9, workers=1))
    (worker,) = batches._workers
    send_from_another_process(worker.pid)
    next(batches)
    send_from_another_process(worker.pid)
    assert len(list(batches)) == 8
    batches = iter(make_loader(eval_stream(tmp_path), list, 2, 0, 9, workers=1))
    next(batches)
    (worker,) = batches._workers
    worker.terminate()  # as Python does at exit
    worker.join(60)
    assert worker.exitcode == 0


def send_from_another_process(pid: int) -> None:
    """Send signals as Slurm does: by a process that is not the worker's parent."""
    child = os.fork()
    if child == 0:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] * (m == "spawn")) for m in START_METHODS])
def test_workers_end_with_a_killed_parent(tmp_path, method) -> None:
    write_shard_set(tmp_path, [5])
    program = (
        "import sys, time; from picture_shards import eval_stream; from blipcore.data import loader\n"
        "if __name__ == '__main__':\n"
        f"    loader._start_method = lambda: {method!r}\n"
        f"    batches = iter(loader.make_loader(eval_stream({str(tmp_path)!r}), list, 2, 0, 9, workers=2))\n"
        "    next(batches); print(*(worker.pid for worker in batches._workers), flush=True); time.sleep(600)\n"
    )
    script = tmp_path / "train.py"
    script.write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as parent:
        workers = parent.stdout.readline().split()
        parent.kill()
        # The workers hold the other ends of the pipe.
        assert parent.stdout.read() == b"" and len(workers) == 2


def test_workers_are_forked_unless_the_process_uses_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(loader.sys, "platform", "linux")
    assert loader._start_method() == "fork"
    monkeypatch.setattr(loader.torch.cuda, "is_initialized", lambda: True)
    assert loader._start_method() == "spawn"
    monkeypatch.undo()
    monkeypatch.setattr(loader.sys, "platform", "darwin")
    assert loader._start_method() == "spawn"


def test_without_the_sender_of_signals_workers_leave_the_process_group(tmp_path, monkeypatch) -> None:
    monkeypatch.delattr(signal, "sigwaitinfo", raising=False)  # as on macOS
    batches = iter(make_loader(eval_stream(write_shard_set(tmp_path, [5])), list, 2, 0, 9, workers=1))
    next(batches)
    (worker,) = batches._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)
    worker.terminate()  # as Python does at exit
    worker.join(30)
    assert worker.exitcode == 0


def test_a_loader_does_not_draw_from_the_default_generator(tmp_path) -> None:
    stream = eval_stream(write_shard_set(tmp_path, [8]))
    before = torch.get_rng_state()
    list(make_loader(stream, list, 2, 0, 3, workers=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_fails_is_yielded_as_its_exception(tmp_path, workers) -> None:
    def collate(samples: list) -> None:
        raise ValueError("cannot collate")

    batches = make_loader(eval_stream(write_shard_set(tmp_path, [4])), collate, 2, 0, 2, workers)
    errors = [batch for batch, _ in batches]
    assert [(type(error), str(error)) for error in errors] == [(ValueError, "cannot collate")] * 2
