"""The suites of parity once more, with steps that only decode laid out by shape, as CUDA graphs have them.

Here their operations are launched one by one; tests/gpu has the graphs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from server.engine import runner
from server.model.decode import DecodeShape, DecodeStep
from server.model.decode_graphs import Decoder, forward
from tests.engine.conftest import World, new_world
from tests.engine.test_blend import (
    test_a_mixture_alone_equals_the_slow_reference,
    test_an_expert_of_weight_one_answers_as_it_does_alone,
    test_mixtures_in_a_mixed_batch_equal_themselves_alone,
)
from tests.engine.test_mixture import test_a_mixed_batch_gives_the_same_tokens_as_alone
from tests.engine.test_mixture import test_greedy_tokens_equal_the_slow_reference as test_logit_mixtures_equal_it_too
from tests.engine.test_parity import (
    test_greedy_tokens_equal_peft_in_fp32,
    test_mixed_batch_gives_the_same_tokens_as_alone,
    test_probed_expert_answers_as_when_named,
)

__all__ = [
    "test_a_mixed_batch_gives_the_same_tokens_as_alone",
    "test_a_mixture_alone_equals_the_slow_reference",
    "test_an_expert_of_weight_one_answers_as_it_does_alone",
    "test_greedy_tokens_equal_peft_in_fp32",
    "test_logit_mixtures_equal_it_too",
    "test_mixed_batch_gives_the_same_tokens_as_alone",
    "test_mixtures_in_a_mixed_batch_equal_themselves_alone",
    "test_probed_expert_answers_as_when_named",
]

SHAPES: list[DecodeShape] = []


class Launched:
    """In place of a graph."""

    def __init__(self, decoder: Decoder, step: DecodeStep) -> None:
        self.step = step
        self._decoder = decoder
        SHAPES.append(step.shape)

    def run(self) -> Tensor:
        return forward(self._decoder, self.step)


@pytest.fixture(scope="module")
def world(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "recorder_for", lambda _: Launched)
        with new_world(base_folder, tmp_path_factory.mktemp("world")) as made:
            yield made


def test_shapes_of_all_kinds_have_been_met() -> None:
    """Runs behind the others: they are worth nothing where every step was laid out the other way."""
    assert {shape.slots for shape in SHAPES} == {0, 32}
    assert {shape.weighed for shape in SHAPES} == {False, True}
    assert max(shape.rows for shape in SHAPES) >= 16


def test_a_decoder_that_cannot_be_recorded_runs_kernel_by_kernel(base_folder: Path, tmp_path: Path) -> None:
    tries = []

    def record(_: Decoder, step: DecodeStep) -> Any:
        tries.append(step.shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "recorder_for", lambda _: record)
        with new_world(base_folder, tmp_path) as made:
            test_greedy_tokens_equal_peft_in_fp32(made, "act16")
    assert len(tries) == 1
