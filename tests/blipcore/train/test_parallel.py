"""Two processes train like one on the same samples: losses, gradients, momentum encoders and queues."""

import pytest
import torch
import torch.distributed as dist
from on_ranks import on_ranks
from rank_work import tiny_task, train_in_turn, train_two_steps
from torch.testing._internal.distributed.fake_pg import FakeStore

from blipcore.train.parallel import parallelize

pytestmark = pytest.mark.timeout(900)  # on busy cores, processes wait for each other

ACROSS_RANKS = {"itc_across_ranks": True, "itm_across_ranks": True, "negatives": "argmax"}
LOCAL = {"negatives": "argmax"}


def assert_same(results: list[dict], single: dict) -> None:
    for result in results:
        for losses, single_losses in zip(result["losses"], single["losses"], strict=True):
            assert losses == pytest.approx(single_losses, rel=2e-5)
        for part in ("gradients", "state"):
            assert result[part].keys() == single[part].keys()
            # Adam magnifies the rounding error of a gradient that is zero.
            atol = 1e-5 if part == "gradients" else 1e-4
            for name, value in result[part].items():
                torch.testing.assert_close(
                    value, single[part][name], rtol=1e-3, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
                )
    exported = results[0]["exported"]
    assert {f"model.{name}" for name in exported} <= results[0]["state"].keys()
    assert all(torch.equal(value, results[0]["state"][f"model.{name}"]) for name, value in exported.items())


# With candidates of each process alone, as in the official code, two processes train like one that accumulates.
SCENARIOS = {
    "pretrain": ("pretrain", 4, 8, ACROSS_RANKS),
    "retrieval": ("retrieval", 4, 8, ACROSS_RANKS),
    "caption": ("caption", 4, 8, {}),
    "accumulating": ("retrieval", 2, 2, LOCAL | {"clip": 0.1}),
}


@pytest.fixture(scope="module")
def two_processes() -> dict[tuple[str, str], list[dict]]:
    """The results of two processes in every scenario, replicated and sharded."""
    cases = [(name, parallel) for name in SCENARIOS for parallel in ("ddp", "fsdp")]
    scenarios = [(SCENARIOS[name][0], parallel, *SCENARIOS[name][1::2]) for name, parallel in cases]
    results = on_ranks(2, train_in_turn, scenarios)
    return dict(zip(cases, zip(*results, strict=True), strict=True))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_like_one_with_the_whole_batch(two_processes, name, parallel) -> None:
    task, _, micro, options = SCENARIOS[name]
    single = train_two_steps(task, parallel, micro, **options)
    assert_same(two_processes[name, parallel], single)
    if "clip" in options:
        assert two_processes[name, parallel][0]["norm"].item() == pytest.approx(single["norm"].item(), rel=1e-4)
        assert single["norm"] > options["clip"]


def test_a_run_on_the_cpu_of_a_machine_with_gpus_is_sharded_on_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device("cuda"))
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        task = parallelize(tiny_task("caption"), "fsdp")
        assert {p.device_mesh.device_type for p in task.parameters()} == {"cpu"}
    finally:
        dist.destroy_process_group()


def test_candidates_of_the_other_process_change_the_losses() -> None:
    """Otherwise the scenarios above would not test them."""
    single = train_two_steps("pretrain", "ddp", 8, **ACROSS_RANKS)
    local = train_two_steps("pretrain", "ddp", 4, **LOCAL)
    for name in ("loss_itc", "loss_itm"):
        assert local["losses"][0][name] != pytest.approx(single["losses"][0][name], rel=5e-5)
