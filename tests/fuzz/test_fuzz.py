"""Random and damaged inputs give a result or a documented error; `make fuzz` tries them for hours."""

from __future__ import annotations

import os
import time

import pytest
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, given, seed, settings

EXAMPLES = 10  # per target in the default tests
EXAMPLES_AT_ONCE = 2000


def run(name: str, number: int, examples: int) -> None:
    """Check examples of a target; the same ones for the same number."""
    target = TARGETS[name]
    checks = list(HealthCheck)
    rules = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=checks)
    seed(number)(rules(given(target.inputs)(lambda value: target.check(value))))()


@pytest.mark.parametrize("name", TARGETS)
def test_random_inputs_give_a_result_or_a_documented_error(name: str) -> None:
    run(name, 0, EXAMPLES)


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", TARGETS)
def test_many_random_inputs(name: str) -> None:
    seconds = 60 * float(os.environ.get("FUZZ_MINUTES", "10")) / len(TARGETS)
    deadline, number = time.monotonic() + seconds, 1
    while time.monotonic() < deadline:
        run(name, number, EXAMPLES_AT_ONCE)
        number += 1
    print(f"{name}: {(number - 1) * EXAMPLES_AT_ONCE} inputs")
