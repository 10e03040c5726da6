"""Rows into clusters by their features, and by nothing at all for comparison. Knows vectors; no model and no files.

Legend: N rows, D width of a feature, C clusters.
"""

import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from expert_store import Vector
from server.model.gradient import mean_direction
from training.errors import InvalidRun

Clustering = Literal["birch", "random"]
_WIDEST_RADIUS = 0.5  # of unit vectors, which are at most 2 apart
_SUBCLUSTERS = 10  # a cluster, at least; so that their merging decides, and not the order of the rows
_MOST_HALVINGS = 20


@dataclass(frozen=True, eq=False)
class Clusters:
    """cluster_N[n] is the cluster of row n; centroids_CD are the mean directions their experts are found by."""

    cluster_N: NDArray[np.int64]
    centroids_CD: Vector

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(int(count) for count in np.bincount(self.cluster_N, minlength=len(self.centroids_CD)))


def cluster_rows(features_ND: Vector, num_clusters: int, *, how: Clustering, sample: int, seed: int) -> Clusters:
    """C clusters, none of them empty. Raises InvalidRun where the rows do not fall into so many."""
    if len(features_ND) < num_clusters:
        raise InvalidRun(f"--clusters {num_clusters}: there are only {len(features_ND)} rows")
    if how == "random":
        return _random(features_ND, num_clusters, seed)
    chosen = sorted(random.Random(f"clusters {seed}").sample(range(len(features_ND)), min(sample, len(features_ND))))
    centroids_CD = _birch_centroids(features_ND[chosen], num_clusters)
    clusters = Clusters(nearest(features_ND, centroids_CD), centroids_CD)
    if 0 in clusters.sizes:
        raise InvalidRun(f"--clusters {num_clusters}: one of them is nearest to no row: ask for fewer")
    return clusters


def nearest(features_ND: Vector, centroids_CD: Vector) -> NDArray[np.int64]:
    """[N]: by cosine, of equally near ones the first. Both are of unit length."""
    cluster_N: NDArray[np.int64] = (features_ND @ centroids_CD.T).argmax(axis=1).astype(np.int64)
    return cluster_N


def _birch_centroids(features_ND: Vector, num_clusters: int) -> Vector:
    """[C, D]: BIRCH (Zhang, Ramakrishnan and Livny 1996), its subclusters merged down to C (ELREA, section 3.3)."""
    from sklearn.cluster import Birch  # takes a second to import, which no other recipe should wait for

    wanted = min(len(features_ND), _SUBCLUSTERS * num_clusters)
    for halvings in range(_MOST_HALVINGS):
        birch: Any = Birch(n_clusters=None, threshold=_WIDEST_RADIUS / 2**halvings)  # type: ignore[no-untyped-call]
        birch.fit(features_ND)
        if len(birch.subcluster_centers_) >= wanted:
            break
    if len(birch.subcluster_centers_) < num_clusters:
        raise InvalidRun(
            f"--clusters {num_clusters}: the rows' features fall into {len(birch.subcluster_centers_)} at most"
        )
    label_N = birch.set_params(n_clusters=num_clusters).partial_fit().predict(features_ND)
    return np.stack([mean_direction(features_ND[label_N == label]) for label in sorted(set(label_N.tolist()))])


def _random(features_ND: Vector, num_clusters: int, seed: int) -> Clusters:
    """Of equal size, give or take one row."""
    order = list(range(len(features_ND)))
    random.Random(f"random clusters {seed}").shuffle(order)
    cluster_N = np.empty(len(order), dtype=np.int64)
    for place, row in enumerate(order):
        cluster_N[row] = place % num_clusters
    centroids = [mean_direction(features_ND[cluster_N == cluster]) for cluster in range(num_clusters)]
    return Clusters(cluster_N, np.stack(centroids))
