"""The suites of parity once more, with steps that only decode laid out by shape, as CUDA graphs have them.

Here their operations are launched one by one; tests/gpu has the graphs.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from server.model.decode import DecodeShape, DecodeStep
from server.model.decode_graphs import Decoder, forward
from server.model.paged_kv import SegmentSpan
from tests.engine.conftest import World, new_world
from tests.engine.suites import *  # noqa: F403 - to be run here
from tests.engine.test_blend import test_mixtures_in_a_mixed_batch_equal_themselves_alone
from tests.engine.test_parity import (
    test_greedy_tokens_equal_peft_in_fp32,
    test_mixed_batch_gives_the_same_tokens_as_alone,
)

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
    with new_world(base_folder, tmp_path_factory.mktemp("world"), record_decodes=Launched) as made:
        yield made


def test_steps_that_only_decode_are_laid_out_by_shape(world: World) -> None:
    """The suites are worth nothing here where every step is laid out the other way."""
    test_mixed_batch_gives_the_same_tokens_as_alone(world, "all_twice")
    test_mixtures_in_a_mixed_batch_equal_themselves_alone(world)
    assert {shape.slots for shape in SHAPES} == {0, 32}
    assert {shape.weighed for shape in SHAPES} == {False, True}
    assert max(shape.rows for shape in SHAPES) >= 16


def test_a_decoder_that_cannot_be_recorded_runs_kernel_by_kernel(base_folder: Path, tmp_path: Path) -> None:
    tries = []

    def record(_: Decoder, step: DecodeStep) -> Any:
        tries.append(step.shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    with new_world(base_folder, tmp_path, record_decodes=record) as made:
        test_greedy_tokens_equal_peft_in_fp32(made, "act16")
    assert len(tries) == 1


def test_a_step_of_very_uneven_lengths_is_not_padded(base_folder: Path, tmp_path: Path) -> None:
    """Its rows would all be as long as the longest: more than the whole cache."""
    with new_world(base_folder, tmp_path, record_decodes=Launched) as made:
        graphs = made.engine._runner._graphs
        assert graphs is not None
        num_blocks = made.engine.blocks.num_blocks
        longest = SegmentSpan(0, 1, 16 * num_blocks // 2, range(num_blocks))
        short = [SegmentSpan(row, 1, 3, [row]) for row in range(1, 9)]
        before = len(SHAPES)
        assert graphs.run([5] * 9, [longest, *short], [None] * 9) is None
        assert len(SHAPES) == before
