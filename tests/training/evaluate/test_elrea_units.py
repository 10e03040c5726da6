"""The bench's pool is the recipe's: same base adapter, clusters, centroids and experts, with nothing trained twice."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from expert_store import CENTROID_FILE, WEIGHTS_FILE, read_centroid
from server.model.base import load_base
from tests.training.test_see import Recorder
from training.clusters import Clustering
from training.data import read_rows
from training.elrea import FEATURE_FILE, ElreaOptions, train_elrea
from training.evaluate.adapters import ADAPTER, TunedLora
from training.evaluate.budget import BUDGETS
from training.evaluate.elrea import ClusterExpert, cluster_experts
from training.evaluate.stream import Sample
from training.evaluate.units import BaseSource, Unit, Workshop
from training.selection import About

BUDGET = replace(BUDGETS["small"], rank=2, epochs=2, batch_size=4)
TOPICS = ("the quick brown fox jumps {}", "What is the capital of France? {}")
ROWS = tuple(
    Sample(f"{i}", ("fox", "cap")[i % 2], TOPICS[i % 2].format(i), ("dogs", "Paris")[i % 2]) for i in range(16)
)


def adapter() -> TunedLora:
    return TunedLora("multi-task", ROWS, BUDGET, seed=3)


def run(workshop: Workshop, *units: Unit) -> list[Unit]:
    done: list[Unit] = []
    with ThreadPoolExecutor(1) as executor:
        workshop.run(units, executor, on_done=done.append)
    return done


@pytest.mark.parametrize("how", ["birch", "random"])
def test_the_units_make_the_pool_that_the_recipe_makes(
    base_source: BaseSource, workshop: Workshop, tmp_path: Path, how: Clustering
) -> None:
    experts = cluster_experts(adapter(), 2, how)
    run(workshop, *experts)

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"id": s.id, "input": s.prompt, "output": s.output}) for s in ROWS))
    tuning = BUDGET.tuning(3)
    options = ElreaOptions(
        clusters=2,
        clustering=how,
        rank=2,
        epochs=tuning.epochs,
        learning_rate=tuning.learning_rate,
        batch_size=tuning.batch_size,
        seed=3,
    )
    base = load_base(base_source.source, device="cpu", cache=base_source.cache)
    out = tmp_path / "pool"
    pool = train_elrea(
        base, read_rows(rows, answers=True), options, About(), out=out, resume=False, observer=Recorder()
    )

    base_unit = workshop.folder(experts[0].adapter) / ADAPTER
    assert (base_unit / WEIGHTS_FILE).read_bytes() == (pool.base / WEIGHTS_FILE).read_bytes()
    clusters = workshop.folder(experts[0].clusters) / FEATURE_FILE
    assert load_clusters(clusters) == load_clusters(pool.feature_file)
    for unit, wanted in zip(experts, pool.experts, strict=True):
        found = workshop.folder(unit) / ADAPTER
        assert (found / WEIGHTS_FILE).read_bytes() == (wanted / WEIGHTS_FILE).read_bytes()
        centroids = [read_centroid(folder / CENTROID_FILE) for folder in (found, wanted)]
        assert centroids[0].origin == centroids[1].origin
        np.testing.assert_allclose(centroids[0].vector_D, centroids[1].vector_D, atol=1e-3)


def load_clusters(path: Path) -> list[int]:
    tensor: torch.Tensor = load_file(path)["cluster"]
    return [int(number) for number in tensor]


def test_two_clusterings_share_base_adapter_and_features(workshop: Workshop) -> None:
    birch, at_random = (cluster_experts(adapter(), 2, how) for how in ("birch", "random"))
    first = run(workshop, *birch)
    assert [unit.name for unit in first][:3] == ["lora-multi-task", "gradients", "clusters-birch"]
    second = run(workshop, *at_random)
    assert sorted(unit.name for unit in second) == ["cluster-random-0", "cluster-random-1", "clusters-random"]
    weights = {(workshop.folder(unit) / ADAPTER / WEIGHTS_FILE).read_bytes() for unit in (*birch, *at_random)}
    assert len(weights) == 4


def test_every_part_of_a_pool_is_in_its_key(workshop: Workshop) -> None:
    experts: list[ClusterExpert] = [
        *cluster_experts(adapter(), 2, "birch"),
        *cluster_experts(adapter(), 3, "birch"),
        *cluster_experts(adapter(), 2, "random"),
        *cluster_experts(replace(adapter(), seed=4), 2, "birch"),
        *cluster_experts(replace(adapter(), rows=ROWS[::-1]), 2, "birch"),
    ]
    assert len({workshop.key(unit) for unit in experts}) == len(experts)
