"""Two processes learn what one learns from the same samples: losses, gradients, momentum encoders and queues."""

import pytest
import torch
import torch.distributed as dist
from on_ranks import on_ranks
from rank_work import tiny_task, train_in_turn, train_two_steps
from torch.testing._internal.distributed.fake_pg import FakeStore

from blipcore.train.parallel import parallelize

pytestmark = pytest.mark.timeout(900)  # several processes: on busy cores each waits for the others

WHOLE = {"itc_across_ranks": True, "itm_across_ranks": True, "negatives": "argmax"}
LOCAL = {"negatives": "argmax"}


def assert_same(told: list[dict], one: dict) -> None:
    for own in told:
        for ours, theirs in zip(own["losses"], one["losses"], strict=True):
            assert ours == pytest.approx(theirs, rel=2e-5)
        for part in ("gradients", "state"):
            assert own[part].keys() == one[part].keys()
            scale = 1e-5 if part == "gradients" else 1e-4  # Adam magnifies what is left of a gradient that is zero
            for name, value in own[part].items():
                torch.testing.assert_close(
                    value, one[part][name], rtol=1e-3, atol=scale, msg=lambda m, n=name: f"{n}: {m}"
                )
    exported = told[0]["exported"]
    assert {f"model.{name}" for name in exported} <= told[0]["state"].keys()
    assert all(torch.equal(value, told[0]["state"][f"model.{name}"]) for name, value in exported.items())


# With candidates of their own, as in the official code, two processes are one that accumulates.
SCENARIOS = {
    "pretrain": ("pretrain", 4, 8, WHOLE),
    "retrieval": ("retrieval", 4, 8, WHOLE),
    "caption": ("caption", 4, 8, {}),
    "accumulating": ("retrieval", 2, 2, LOCAL | {"clip": 0.1}),
}


@pytest.fixture(scope="module")
def two() -> dict[tuple[str, str], list[dict]]:
    """What two processes make of every scenario, replicated and sharded."""
    asked = [(name, how) for name in SCENARIOS for how in ("ddp", "fsdp")]
    told = on_ranks(2, train_in_turn, [(SCENARIOS[name][0], how, *SCENARIOS[name][1::2]) for name, how in asked])
    return dict(zip(asked, zip(*told, strict=True), strict=True))


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_are_one_with_the_whole_batch(two, name, how):
    task, _, micro, options = SCENARIOS[name]
    one = train_two_steps(task, how, micro, **options)
    assert_same(two[name, how], one)
    if "clip" in options:
        assert two[name, how][0]["norm"].item() == pytest.approx(one["norm"].item(), rel=1e-4)
        assert one["norm"] > options["clip"]


def test_a_run_on_the_cpu_of_a_machine_with_gpus_is_sharded_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device("cuda"))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        task = parallelize(tiny_task("caption"), "fsdp")
        assert {p.device_mesh.device_type for p in task.parameters()} == {"cpu"}
    finally:
        dist.destroy_process_group()


def test_candidates_of_the_other_process_count(two):
    """Else the scenarios above would compare less than they seem to."""
    one = train_two_steps("pretrain", "ddp", 8, **WHOLE)
    local = train_two_steps("pretrain", "ddp", 4, **LOCAL)
    for name in ("loss_itc", "loss_itm"):
        assert local["losses"][0][name] != pytest.approx(one["losses"][0][name], rel=5e-5)
