"""Memory limits that work is checked against before it starts, and errors at a limit."""

import resource
from pathlib import Path

import pytest

from blipcore.io import memory
from blipcore.io.memory import NotEnoughMemoryError, is_allocation_error, peak_memory_gb, require_memory

GB = 1_000_000_000


@pytest.mark.parametrize("name", ["the limit of `ulimit -v`", "the memory"])
def test_work_beyond_a_limit_is_refused_with_both_numbers(monkeypatch, name) -> None:
    monkeypatch.setattr(memory, "_memory_limits", lambda: [("the first", 64 * GB, GB), (name, 4 * GB, GB)])
    require_memory(2 * GB, "Training")
    with pytest.raises(NotEnoughMemoryError) as error:
        require_memory(3 * GB, "Training")
    assert str(error.value) == (
        f"Training needs at least 3.4 GB of memory more, but {name} of 4.0 GB leaves 3.0 GB: raise the limit, or use a "
        "smaller model."
    )


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="this system has no control groups")
def test_the_limit_of_a_control_group_is_read_from_the_group_or_one_above(tmp_path, monkeypatch) -> None:
    for folder, file in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / file).write_text("500000000\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    with pytest.raises(NotEnoughMemoryError, match=r"the limit of the control group .* of 0\.5 GB"):
        require_memory(GB, "Training")


def test_without_limits_below_the_memory_of_the_machine_small_work_is_allowed() -> None:
    require_memory(0, "Nothing")
    assert peak_memory_gb()["this_process"] > 0


def test_failed_allocations_of_torch_are_recognised() -> None:
    assert is_allocation_error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    assert is_allocation_error(MemoryError()) and not is_allocation_error(RuntimeError("shape mismatch"))


@pytest.mark.parametrize(
    ("error", "limited", "unlimited"),
    [
        (MemoryError(), True, True),
        (RuntimeError("std::bad_alloc"), True, True),
        (RuntimeError("can't start new thread"), True, False),
        (RuntimeError("could not create a primitive"), True, False),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), True, False),
        (ValueError("a wrong value"), False, False),
    ],
)
def test_errors_of_libraries_at_the_limit_are_allocation_errors(
    monkeypatch: pytest.MonkeyPatch, error: Exception, limited: bool, unlimited: bool
) -> None:
    for limit, expected in ((1_500_000_000, limited), (resource.RLIM_INFINITY, unlimited)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert memory.is_allocation_error(error) == expected
        assert memory.describe_memory_limit() == (" (`ulimit -v` allows 1.5 GB)" if limit > 0 else "")
