"""The ELREA recipe on a tiny base: separable rows are told apart, every piece is kept, and a pool can be served."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from expert_store import WEIGHTS_FILE, inspect_adapter, parse_draft, read_centroid
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.gradient import GradientFeature, GradientRunner, mean_direction
from server.model.sketch import Projection
from tests.support.tiny import write_base
from tests.training.test_see import Recorder
from training.clusters import cluster_rows
from training.data import DataFile, read_rows
from training.elrea import ElreaOptions, ElreaPool, train_elrea
from training.errors import InvalidRun
from training.selection import About

TOPICS = ("the quick brown fox jumps {}", "What is the capital of France? {}", "0123 {} 3210 {}")
OPTIONS = ElreaOptions(clusters=3, rank=4, width=512, batch_size=6, learning_rate=5e-3, seed=3)
ABOUT = About(name="mix")


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def load(folder: Path) -> Base:
    return load_base(str(folder), dtype="fp32", device="cpu", cache=folder)


def write_rows(path: Path, per_topic: int = 6) -> DataFile:
    """Row i is of topic i modulo 3."""
    rows = [
        {"id": i, "input": TOPICS[i % 3].format(i, i + 1), "output": ("dogs", "Paris", "9")[i % 3]}
        for i in range(3 * per_topic)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read_rows(path, answers=True)


@pytest.fixture(scope="module")
def trained(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ElreaPool, DataFile, Base]:
    root = tmp_path_factory.mktemp("pool")
    base, data = load(base_folder), write_rows(root / "mixed.jsonl")
    pool = train_elrea(base, data, OPTIONS, ABOUT, out=root / "out", resume=False, observer=Recorder())
    return pool, data, base


def test_clusters_are_the_topics(trained: tuple[ElreaPool, DataFile, Base]) -> None:
    pool, _, _ = trained
    assert sorted(pool.sizes) == [6, 6, 6]
    samples = [parse_draft((folder / "manifest.json").read_text()).samples for folder in pool.experts]
    beginnings = [{text[:4] for text in texts} for texts in samples]
    assert all(len(beginning) == 1 for beginning in beginnings)
    assert len(set.union(*beginnings)) == 3


def test_every_adapter_is_peft_s_and_the_store_s(trained: tuple[ElreaPool, DataFile, Base], base_folder: Path) -> None:
    pool, _, base = trained
    for folder, name in [(pool.base, "mix-base"), *((e, f"mix-{i}") for i, e in enumerate(pool.experts))]:
        assert inspect_adapter(folder, base.spec, max_rank=8).kind == "lora"
        draft = parse_draft((folder / "manifest.json").read_text())
        assert (draft.name, draft.base_fingerprint, draft.indicators) == (name, base.spec.fingerprint, None)
        assert draft.training is not None
        assert (draft.training.recipe, draft.training.seed) == ("elrea", 3)
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder)
        assert not (folder / "checkpoints").exists()


def test_experts_begin_as_the_base_adapter_and_go_their_own_way(trained: tuple[ElreaPool, DataFile, Base]) -> None:
    pool, _, _ = trained
    start = load_file(pool.base / WEIGHTS_FILE)
    ends = [load_file(folder / WEIGHTS_FILE) for folder in pool.experts]
    down = [name for name in start if "lora_A" in name]
    for end in ends:
        drift = max(float((end[name].float() - start[name].float()).abs().max()) for name in down)
        size = max(float(start[name].float().abs().max()) for name in down)
        assert 0 < drift < size
    assert any(not torch.equal(ends[0][name], ends[1][name]) for name in start)


def test_a_centroid_is_the_mean_feature_of_its_rows(trained: tuple[ElreaPool, DataFile, Base]) -> None:
    """With the function that the server has; the rows of a topic are the cluster, so the sample is all of it."""
    pool, data, base = trained
    chat = ChatFormat(base.tokenizer)
    feature = GradientFeature(GradientRunner(base, chat), pool.base, Projection(OPTIONS.width, OPTIONS.seed))
    centroids = np.stack([read_centroid(folder / "centroid.safetensors").vector_D for folder in pool.experts])
    for topic in range(3):
        rows = [row.input for row in data.rows if int(row.id) % 3 == topic]
        mean = mean_direction(np.stack([feature.of(chat.render([{"role": "user", "content": text}])) for text in rows]))
        assert float((centroids @ mean).max()) == pytest.approx(1, abs=1e-5)


def test_the_base_model_is_left_as_it_was(trained: tuple[ElreaPool, DataFile, Base], base_folder: Path) -> None:
    _, _, base = trained
    tokens = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(base.model(tokens).logits, load(base_folder).model(tokens).logits)
    assert not any("lora" in name for name, _ in base.model.named_parameters())


def test_a_run_cut_off_anywhere_goes_on_to_the_same_pool(
    base_folder: Path, trained: tuple[ElreaPool, DataFile, Base], tmp_path: Path
) -> None:
    """Cut in the base adapter, among the features, and in an expert; what is done is not done again."""
    whole, _, _ = trained
    data = write_rows(tmp_path / "mixed.jsonl")
    base, counts = load(base_folder), []
    for budget in (2, 14, 19, None):
        recorder = Recorder(fail_after=budget)
        try:
            pool = train_elrea(base, data, OPTIONS, ABOUT, out=tmp_path / "out", resume=True, observer=recorder)
        except KeyboardInterrupt:
            base = load(base_folder)
        counts.append(len(recorder.losses))
    assert counts[-1] < 3 + 18 + 3
    for mine, other in zip((pool.base, *pool.experts), (whole.base, *whole.experts), strict=True):
        left, right = load_file(mine / WEIGHTS_FILE), load_file(other / WEIGHTS_FILE)
        assert all(torch.equal(left[name], right[name]) for name in left)
    again = Recorder()
    train_elrea(base, data, OPTIONS, ABOUT, out=tmp_path / "out", resume=True, observer=again)
    assert again.losses == []


def test_runs_are_not_mixed(base_folder: Path, trained: tuple[ElreaPool, DataFile, Base]) -> None:
    pool, data, _ = trained
    out = pool.base.parent
    with pytest.raises(InvalidRun, match="pass --resume"):
        train_elrea(load(base_folder), data, OPTIONS, ABOUT, out=out, resume=False, observer=Recorder())
    other = replace(OPTIONS, clusters=2)
    with pytest.raises(InvalidRun, match="differs from this run"):
        train_elrea(load(base_folder), data, other, ABOUT, out=out, resume=True, observer=Recorder())


def test_features_of_another_base_adapter_are_an_error(
    base_folder: Path, trained: tuple[ElreaPool, DataFile, Base], tmp_path: Path
) -> None:
    import shutil

    pool, data, _ = trained
    shutil.copytree(pool.base.parent, tmp_path / "out")
    config = tmp_path / "out" / "base" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    shutil.rmtree(tmp_path / "out" / "expert-0")
    with pytest.raises(InvalidRun, match="made with another base_adapter"):
        train_elrea(load(base_folder), data, OPTIONS, ABOUT, out=tmp_path / "out", resume=True, observer=Recorder())


def test_more_clusters_than_rows_are_refused_before_anything_is_trained(base_folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "mixed.jsonl", per_topic=1)
    options = replace(OPTIONS, clusters=4)
    with pytest.raises(InvalidRun, match="only 3 rows"):
        train_elrea(load(base_folder), data, options, ABOUT, out=tmp_path / "out", resume=False, observer=Recorder())
    assert not (tmp_path / "out").exists()


def directions(num_rows: int, num_topics: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(num_topics, 64)) + 3.0  # what all have in common, and what they have not
    label = np.arange(num_rows) % num_topics
    features = topics[label] + noise * rng.normal(size=(num_rows, 64))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), label


def agreement(label: np.ndarray, cluster: np.ndarray) -> float:
    return sum(np.bincount(label[cluster == c]).max() for c in set(cluster.tolist())) / len(label)


def test_a_separable_mixture_is_recovered_from_a_sample() -> None:
    features, label = directions(600, 5, noise=0.3)
    clusters = cluster_rows(features, 5, how="birch", sample=200, seed=1)
    assert agreement(label, clusters.cluster_N) == 1.0
    assert clusters.sizes == (120,) * 5
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids_CD, axis=1), 1, rtol=1e-5)


def test_random_clusters_are_of_equal_size_and_know_nothing_of_topics() -> None:
    features, label = directions(602, 5, noise=0.3)
    clusters = cluster_rows(features, 5, how="random", sample=200, seed=1)
    assert sorted(clusters.sizes) == [120, 120, 120, 121, 121]
    assert agreement(label, clusters.cluster_N) < 0.4
    again = cluster_rows(features, 5, how="random", sample=200, seed=1)
    np.testing.assert_array_equal(again.cluster_N, clusters.cluster_N)
    other = cluster_rows(features, 5, how="random", sample=200, seed=2)
    assert (other.cluster_N != clusters.cluster_N).any()


def test_equal_rows_do_not_fall_into_several_clusters() -> None:
    features = np.repeat(directions(1, 1, 0.0)[0], 10, axis=0)
    with pytest.raises(InvalidRun, match="fall into 1 at most"):
        cluster_rows(features, 2, how="birch", sample=10, seed=0)
