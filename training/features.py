"""Gradient features of all rows, computed a chunk at a time and kept on disk. Knows prompts; no clusters, no recipe."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from expert_store import Vector
from server.model.chat import Prompt
from server.model.gradient import GradientFeature
from training.progress import RunObserver

_CHUNK = 64


def compute_features(
    feature: GradientFeature, prompts: Sequence[Prompt], *, folder: Path, observer: RunObserver
) -> Vector:
    """[N, D] in the prompts' order. Chunks that lie in `folder` are taken from there; it belongs to one run alone."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(prompts), _CHUNK)
    done = [start for start in starts if _chunk_file(folder, start).exists()]
    observer.begin(done=sum(min(_CHUNK, len(prompts) - start) for start in done), total=len(prompts))
    for start in starts:
        if start not in done:
            _write(_chunk_file(folder, start), _features(feature, prompts[start : start + _CHUNK], observer))
    return np.concatenate([np.load(_chunk_file(folder, start)) for start in starts])


def _features(feature: GradientFeature, prompts: Sequence[Prompt], observer: RunObserver) -> Vector:
    vectors = []
    for prompt in prompts:
        measured = feature.measure(prompt)
        observer.step(loss=measured.loss, tokens=len(prompt.tokens))
        vectors.append(measured.vector_D)
    return np.stack(vectors)


def _chunk_file(folder: Path, start: int) -> Path:
    return folder / f"{start:08d}.npy"


def _write(path: Path, features_ND: Vector) -> None:
    writing = path.with_suffix(".writing")
    with writing.open("wb") as file:
        np.save(file, features_ND)
    os.replace(writing, path)
