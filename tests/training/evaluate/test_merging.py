"""Merged adapters against the formulas; TIES against a merge written out."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.tiny import write_adapter
from training.evaluate.adapters import ADAPTER, TunedLora
from training.evaluate.budget import BUDGETS
from training.evaluate.merging import Merged
from training.evaluate.units import BaseSource, Workshop


def deltas(base: BaseSource, folder: Path) -> dict[str, Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.source, dtype=torch.float32), folder)
    return {n: m.get_delta_weight("default").float() for n, m in model.named_modules() if hasattr(m, "lora_A")}


@pytest.fixture
def parts(workshop: Workshop, base_source: BaseSource, tmp_path: Path) -> tuple[TunedLora, ...]:
    """Three trained units, whose adapters are random ones."""
    units = tuple(TunedLora(name, (), BUDGETS["small"], seed) for seed, name in enumerate(("a", "b", "c")))
    for unit in units:
        folder = workshop.folder(unit) / ADAPTER
        folder.parent.mkdir(parents=True)
        write_adapter(folder, Path(base_source.source), kind="lora", seed=unit.seed, targets=["q_proj", "down_proj"])
        (folder.parent / "done.json").write_text('{"seconds": 1}')
    assert tmp_path.exists()
    return units


def merged(workshop: Workshop, base: BaseSource, unit: Merged) -> dict[str, Tensor]:
    with ThreadPoolExecutor(1) as executor:
        workshop.run([unit], executor, on_done=lambda _: None)
    return deltas(base, workshop.folder(unit) / ADAPTER)


@pytest.mark.parametrize(("weight", "count"), [(1 / 3, 3), (0.4, 3), (0.5, 1)])
def test_averages_and_task_arithmetic_are_sums_of_products(
    workshop: Workshop, base_source: BaseSource, parts: tuple[TunedLora, ...], weight: float, count: int
) -> None:
    found = merged(workshop, base_source, Merged("sum", parts[:count], weight))
    each = [deltas(base_source, workshop.folder(part) / ADAPTER) for part in parts[:count]]
    assert len(found) == 6
    for name, delta in found.items():
        wanted = weight * sum(part[name] for part in each)
        torch.testing.assert_close(delta, wanted, rtol=0.02, atol=0.01 * float(wanted.abs().max()))


def ties_by_hand(parts: list[Tensor], density: float) -> Tensor:
    """Trim each to its largest values, elect the sign of the larger mass, average what agrees (arXiv 2306.01708)."""
    trimmed = []
    for part in parts:
        kept = int(density * part.numel())
        least = part.abs().flatten().sort(descending=True).values[kept - 1]
        trimmed.append(torch.where(part.abs() >= least, part, 0.0))
    stack = torch.stack(trimmed)
    sign = torch.where(stack.sum(dim=0) >= 0, 1.0, -1.0)
    agreeing = (stack.sign() == sign) & (stack != 0)
    return (stack * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)


def test_ties_is_the_nearest_of_its_rank_to_the_merge_by_hand(
    workshop: Workshop, base_source: BaseSource, parts: tuple[TunedLora, ...]
) -> None:
    found = merged(workshop, base_source, Merged("ties", parts, 1.0, "ties_svd", 0.2))
    each = [deltas(base_source, workshop.folder(part) / ADAPTER) for part in parts]
    for name, delta in found.items():
        by_hand = ties_by_hand([part[name] for part in each], 0.2)
        u, s, v = torch.linalg.svd(by_hand, full_matrices=False)
        nearest = u[:, :12] @ torch.diag(s[:12]) @ v[:12]
        torch.testing.assert_close(delta, nearest, rtol=0.05, atol=0.03 * float(nearest.abs().max()))
