"""Units of ELREA's pool: the recipe's own pieces (training/elrea.py), so that pools share what they have in common.

The base adapter is a `TunedLora` on all rows, which is what multi-task training is. Knows no server.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expert_store import CENTROID_FILE, Centroid
from server.model.chat import ChatFormat
from server.model.gradient import FEATURE
from server.model.sketch import DEFAULT_WIDTH, Projection
from training.clusters import Clustering, cluster_rows
from training.elrea import (
    FEATURE_FILE,
    ElreaOptions,
    measure_prompts,
    origin_of,
    read_clusters,
    tune_adapter,
    write_clusters,
)
from training.evaluate.adapters import ADAPTER, TunedLora, encode, trained_by
from training.evaluate.units import BaseSource, Spent, Unit
from training.tuning import continued_adapter

_FEATURES = "features.npy"


@dataclass(frozen=True, eq=False)
class GradientFeatures:
    """Of the prompts of all rows that the base adapter was trained on, through it. [N, width]."""

    adapter: TunedLora
    width: int = DEFAULT_WIDTH

    @property
    def name(self) -> str:
        return "gradients"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return (self.adapter,)

    @property
    def cost(self) -> int:
        return sum(len(sample.prompt) for sample in self.adapter.rows) // 4

    def identity(self) -> Mapping[str, Any]:
        return {"feature": FEATURE, "width": self.width, "seed": self.adapter.seed}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:
        loaded = base.load()
        prompts = [sample.prompt for sample in self.adapter.rows]
        projection = Projection(self.width, self.adapter.seed)
        chunks = folder / "chunks"
        features_ND = measure_prompts(
            loaded, ChatFormat(loaded.tokenizer), parents[0] / ADAPTER, prompts, projection, chunks, spent
        )
        np.save(folder / _FEATURES, features_ND)
        shutil.rmtree(chunks)


@dataclass(frozen=True, eq=False)
class RowClusters:
    """Which rows belong together, and where their clusters lie."""

    features: GradientFeatures
    count: int
    how: Clustering
    cost: int = 0

    @property
    def adapter(self) -> TunedLora:
        return self.features.adapter

    @property
    def name(self) -> str:
        return f"clusters-{self.how}"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return (self.features, self.adapter)

    def identity(self) -> Mapping[str, Any]:
        return {"count": self.count, "how": self.how, "sample": ElreaOptions().sample, "seed": self.adapter.seed}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:  # noqa: ARG002
        seed = self.adapter.seed
        features_ND = np.load(parents[0] / _FEATURES)
        clusters = cluster_rows(features_ND, self.count, how=self.how, sample=ElreaOptions().sample, seed=seed)
        origin = origin_of(base.fingerprint, parents[1] / ADAPTER, seed=seed)
        write_clusters(folder / FEATURE_FILE, clusters, origin)


@dataclass(frozen=True, eq=False)
class ClusterExpert:
    """Begins as the base adapter and is trained on a cluster's rows; its centroid lies beside it."""

    clusters: RowClusters
    number: int

    @property
    def adapter(self) -> TunedLora:
        return self.clusters.adapter

    @property
    def name(self) -> str:
        return f"cluster-{self.clusters.how}-{self.number}"

    @property
    def parents(self) -> tuple[Unit, ...]:
        return (self.clusters, self.adapter)

    @property
    def cost(self) -> int:
        return self.adapter.cost // self.clusters.count  # whose rows those are is not known yet

    def identity(self) -> Mapping[str, Any]:
        return {"cluster": self.number, **trained_by(self.adapter.budget), "seed": self.adapter.seed}

    def make(self, base: BaseSource, parents: Sequence[Path], folder: Path, spent: Spent) -> None:
        start = parents[1] / ADAPTER
        origin = origin_of(base.fingerprint, start, seed=self.adapter.seed)
        clusters = read_clusters(parents[0] / FEATURE_FILE, origin)
        rows = [self.adapter.rows[row] for row in np.flatnonzero(clusters.cluster_N == self.number)]
        loaded = base.load()
        tune_adapter(
            loaded,
            lambda: continued_adapter(loaded, start),
            encode(loaded, rows),
            self.adapter.budget.tuning(self.adapter.seed),
            folder=folder / ADAPTER,
            observer=spent,
        )
        centroid = Centroid(origin, clusters.centroids_CD[self.number])
        (folder / ADAPTER / CENTROID_FILE).write_bytes(centroid.to_bytes())


def cluster_experts(base_adapter: TunedLora, count: int, how: Clustering) -> tuple[ClusterExpert, ...]:
    clusters = RowClusters(GradientFeatures(base_adapter), count, how)
    return tuple(ClusterExpert(clusters, number) for number in range(count))
