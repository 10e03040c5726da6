"""The ELREA recipe: a base adapter, rows clustered by gradient, experts from it (arXiv 2502.00089). No terminal.

    1 base adapter: LoRA, SFT on all rows      2 every prompt's gradient through it, projected (`server.model.gradient`)
    3 BIRCH on a sample of them -> C clusters; every row to its nearest centroid by cosine
    4 an expert a cluster: begins as the base adapter, SFT on the cluster's rows; its centroid lies beside it

Each of the C + 1 adapters and each chunk of features is a piece of its own, which is kept once it is there.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import set_seed

from expert_store import (
    CENTROID_FILE,
    MANIFEST_FILE,
    PROFILE_FILE,
    Centroid,
    ManifestDraft,
    Origin,
    Training,
    Vector,
    digest_adapter,
)
from server.model.base import Base
from server.model.chat import ChatFormat
from server.model.feature import PromptFeature
from server.model.gradient import FEATURE, GradientFeature, GradientRunner
from server.model.sketch import DEFAULT_WIDTH, Projection
from training.clusters import Clustering, Clusters, cluster_rows
from training.data import DataFile, Example, digest_files
from training.errors import InvalidRun
from training.features import compute_features
from training.output import CHECKPOINTS, remove_checkpoints, save_adapter
from training.progress import RunObserver
from training.selection import About, refuse_unknown_targets
from training.suffix import SuffixRunner
from training.tuning import AnswerFormat, TuningOptions, continued_adapter, fresh_adapter, plan, tune

RUN_FILE = "run.json"
FEATURE_FILE = "clusters.safetensors"
BASE_FOLDER = "base"
_FEATURES = "features"
_NUM_SAMPLES = 4
_SAMPLE_CHARS = 4000  # what a manifest holds
_WIDEST = 1 << 17


@dataclass(frozen=True, kw_only=True)
class ElreaOptions(TuningOptions):
    """What the recipe can be told. Everything here is recorded in the manifests."""

    clusters: int = 4
    clustering: Clustering = "birch"
    sample: int = 5000  # rows that are clustered; all others go to the nearest
    width: int = DEFAULT_WIDTH  # of the projected gradients
    rank: int = 8
    alpha: float | None = None  # None: twice the rank
    targets: tuple[str, ...] = ()  # empty: all linear layers
    expert_epochs: int | None = None  # None: as many as the base adapter's
    max_tokens: int | None = None  # None: the base's context

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise InvalidRun(f"--clusters {self.clusters}: at least one is needed")
        if not 1 <= self.width <= _WIDEST:
            raise InvalidRun(f"--width {self.width}: from 1 to {_WIDEST}")


@dataclass(frozen=True)
class ElreaPool:
    """What came of a run: folders that PEFT loads, each with its manifest; experts in the order of the clusters."""

    base: Path
    experts: tuple[Path, ...]
    sizes: tuple[int, ...]
    feature_file: Path


@dataclass(frozen=True)
class _Run:
    """What all pieces of one run share."""

    base: Base
    chat: ChatFormat
    data: DataFile
    examples: list[Example]
    options: ElreaOptions
    about: About
    out: Path
    observer: RunObserver

    def name(self, end: str) -> str | None:
        return None if self.about.name is None else f"{self.about.name}-{end}"


def train_elrea(
    base: Base,
    data: DataFile,
    options: ElreaOptions,
    about: About,
    *,
    out: Path,
    resume: bool,
    observer: RunObserver,
) -> ElreaPool:
    """Trains C + 1 adapters and leaves them in folders of `out`, with manifests and centroids; `base` stays as it is.

    `about.name` is a prefix: the pool's members are NAME-base, NAME-0, NAME-1 ... Raises InvalidData, InvalidRun,
    Diverged.
    """
    refuse_unknown_targets(base, options.targets)
    chat = ChatFormat(base.tokenizer)
    if base.tokenizer.eos_token_id is None:
        raise InvalidRun(f"the tokenizer of {base.source} names no end-of-sequence token, which every target ends with")
    limit = min(options.max_tokens or base.max_context, base.max_context)
    examples = AnswerFormat(chat, base.tokenizer.eos_token_id).encode(data, max_tokens=limit)
    if len(examples) < options.clusters:
        raise InvalidRun(f"--clusters {options.clusters}: {data.path} has only {len(examples)} rows")
    _open_run(out, base, data, options, resume=resume)
    run = _Run(base, chat, data, examples, options, about, out, observer)

    _train_base_adapter(run)
    origin, clusters, features_ND = _cluster(run)
    experts = tuple(_train_expert(run, origin, clusters, features_ND, c) for c in range(options.clusters))
    return ElreaPool(out / BASE_FOLDER, experts, clusters.sizes, out / FEATURE_FILE)


def _open_run(out: Path, base: Base, data: DataFile, options: ElreaOptions, *, resume: bool) -> None:
    """Raises InvalidRun rather than mix two runs."""
    record = out / RUN_FILE
    identity = {"base": base.spec.fingerprint, "data": digest_files([data.path]), "options": asdict(options)}
    text = json.dumps(identity, sort_keys=True, indent=2)
    if record.exists():
        if not resume:
            raise InvalidRun(f"{out} holds a run already: pass --resume to complete it, or choose another --out")
        if record.read_text() != text:
            raise InvalidRun(
                f"{record} differs from this run in base, data or options: repeat the command that began it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(text)


def _train_base_adapter(run: _Run) -> None:
    folder = run.out / BASE_FOLDER
    if (folder / MANIFEST_FILE).exists():
        return
    _tune_piece(run, run.examples, folder, epochs=run.options.epochs, start=None)
    draft = ManifestDraft(
        name=run.name("base"),
        base_fingerprint=run.base.spec.fingerprint,
        description=run.about.description or "The base adapter that the experts of an ELREA pool started from.",
        training=_record(run, len(run.examples), run.options.epochs, {}),
    )
    (folder / MANIFEST_FILE).write_bytes(draft.to_bytes())


def _cluster(run: _Run) -> tuple[Origin, Clusters, Vector]:
    """The clusters, found now or before, and all features [N, D]. Raises InvalidRun for those of another adapter."""
    options = run.options
    adapter = run.out / BASE_FOLDER
    origin = origin_of(run.base.spec.fingerprint, adapter, seed=options.seed)
    folder = run.out / _FEATURES / origin.base_adapter.removeprefix("sha256:")[:16]
    prompts = [example.row.input for example in run.examples]
    features_ND = measure_prompts(
        run.base, run.chat, adapter, prompts, Projection(options.width, options.seed), folder, run.observer
    )
    path = run.out / FEATURE_FILE
    if path.exists():
        return origin, read_clusters(path, origin), features_ND
    clusters = cluster_rows(
        features_ND, options.clusters, how=options.clustering, sample=options.sample, seed=options.seed
    )
    write_clusters(path, clusters, origin)
    return origin, clusters, features_ND


def origin_of(base_fingerprint: str, adapter: Path, *, seed: int) -> Origin:
    """What gradients through the adapter in a folder can be compared with; `seed` is the projection's."""
    return Origin(base_fingerprint, digest_adapter(adapter), FEATURE, seed)


def measure_prompts(
    base: Base,
    chat: ChatFormat,
    adapter: Path,
    prompts: Sequence[str],
    projection: Projection,
    folder: Path,
    observer: RunObserver,
) -> Vector:
    """[N, D]: every prompt's gradient through the adapter. `folder` keeps them, for this adapter and these prompts."""
    feature = GradientFeature(GradientRunner(base, chat), adapter, projection)
    rendered = [chat.render([{"role": "user", "content": prompt}]) for prompt in prompts]
    return compute_features(feature, rendered, folder=folder, observer=observer)


def read_clusters(path: Path, origin: Origin) -> Clusters:
    """Raises InvalidRun for clusters made with another base, base adapter, feature or projection."""
    with safe_open(path, framework="numpy") as file:
        said = file.metadata()
        clusters = Clusters(file.get_tensor("cluster"), file.get_tensor("centroids"))
    differing = [name for name, value in _origin_strings(origin).items() if said.get(name) != value]
    if differing:
        raise InvalidRun(f"{path} was made with another {', '.join(differing)}: remove it, and it is made anew")
    return clusters


def write_clusters(path: Path, clusters: Clusters, origin: Origin) -> None:
    writing = path.with_suffix(".writing")
    tensors: dict[str, NDArray[Any]] = {"cluster": clusters.cluster_N, "centroids": clusters.centroids_CD}
    save_file(tensors, writing, metadata=_origin_strings(origin))
    os.replace(writing, path)


def _origin_strings(origin: Origin) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(origin).items()}


def _train_expert(run: _Run, origin: Origin, clusters: Clusters, features_ND: Vector, cluster: int) -> Path:
    folder = run.out / f"expert-{cluster}"
    if (folder / MANIFEST_FILE).exists():
        return folder
    members = np.flatnonzero(clusters.cluster_N == cluster)
    examples = [run.examples[row] for row in members]
    epochs = run.options.expert_epochs or run.options.epochs
    _tune_piece(run, examples, folder, epochs=epochs, start=run.out / BASE_FOLDER)
    centroid_D = clusters.centroids_CD[cluster]
    (folder / CENTROID_FILE).write_bytes(Centroid(origin, centroid_D).to_bytes())
    profile = PromptFeature(run.base, run.chat).profile(example.tokens[: example.target_start] for example in examples)
    (folder / PROFILE_FILE).write_bytes(profile.to_bytes())
    cosines = features_ND[members] @ centroid_D
    draft = ManifestDraft(
        name=run.name(str(cluster)),
        base_fingerprint=run.base.spec.fingerprint,
        description=run.about.description or f"Cluster {cluster} of {run.options.clusters} of an ELREA pool.",
        samples=_nearest_samples(examples, cosines),
        training=_record(run, len(examples), epochs, {"cluster": cluster, "base_adapter": origin.base_adapter}),
        quality={"mean_cosine_to_centroid": float(cosines.mean())},
    )
    (folder / MANIFEST_FILE).write_bytes(draft.to_bytes())
    return folder


def _tune_piece(run: _Run, examples: Sequence[Example], folder: Path, *, epochs: int, start: Path | None) -> None:
    options = run.options
    tuning = TuningOptions(**{**{name: getattr(options, name) for name in _TUNING}, "epochs": epochs})

    def adapted() -> PeftModel:
        if start is not None:
            return continued_adapter(run.base, start)
        alpha = options.alpha or 2 * options.rank
        return fresh_adapter(run.base, rank=options.rank, alpha=alpha, targets=options.targets)

    tune_adapter(run.base, adapted, examples, tuning, folder=folder, observer=run.observer)


def tune_adapter(
    base: Base,
    adapted: Callable[[], PeftModel],
    examples: Sequence[Example],
    tuning: TuningOptions,
    *,
    folder: Path,
    observer: RunObserver,
) -> None:
    """Trains one adapter, leaves PEFT's two files in `folder`, and the base as it was. Goes on from its checkpoints.

    `adapted` puts the adapter into the base, once the seed is set.
    """
    set_seed(tuning.seed)
    model = adapted()
    try:
        steps = plan(examples, tuning, pad=base.tokenizer.eos_token_id)
        checkpoints = folder / CHECKPOINTS
        checkpoints.mkdir(parents=True, exist_ok=True)
        tune(model, SuffixRunner(model), steps, tuning, checkpoints=checkpoints, resume=True, observer=observer)
        save_adapter(model, base, folder, invocation_tokens=None)
        remove_checkpoints(checkpoints)
    finally:
        model.unload()


_TUNING = tuple(TuningOptions.__dataclass_fields__)


def _nearest_samples(examples: Sequence[Example], cosines: Vector) -> tuple[str, ...]:
    """What the rows nearest to the centroid ask, as far as a manifest holds it."""
    nearest_first = [examples[index].row.input for index in np.argsort(-cosines, kind="stable")]
    return tuple(text for text in nearest_first if len(text) <= _SAMPLE_CHARS)[:_NUM_SAMPLES]


def _record(run: _Run, num_rows: int, epochs: int, more: dict[str, Any]) -> Training:
    named = ("seed", "epochs", "expert_epochs", "targets")
    settings = {k: v for k, v in asdict(run.options).items() if k not in named and v is not None}
    return Training(
        recipe="elrea",
        seed=run.options.seed,
        data_digest=digest_files([run.data.path]),
        rows=num_rows,
        epochs=epochs,
        command=run.about.command,
        parameters={**settings, "targets": ",".join(run.options.targets) or "all-linear", **more},
    )
