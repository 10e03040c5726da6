"""A store whose pool all three routers are ready for, on a tiny base; who answers is known beforehand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from expert_store import (
    BASE_ALIAS,
    CENTROID_FILE,
    ROUTER_FILE,
    Centroid,
    ExpertStore,
    Indicators,
    ManifestDraft,
    Origin,
    RoutedExpert,
    RouterDraft,
    copy_adapter,
    digest_adapter,
    inspect_adapter,
)
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.gates import GateNetwork
from server.model.gradient import FEATURE, GradientFeature, GradientRunner, mean_direction
from server.model.sketch import Projection
from tests.support import tiny

TOPICS = {"mix-jump": "the jump {}", "mix-lazy": "the lazy {}"}
_PROJECTION = Projection(width=512, seed=4)
_GATES = {"mix-jump": 3.0, "mix-lazy": 1.0}


@dataclass(frozen=True)
class ThreeRouters:
    """The chain asks `u-lazy`, which rejects everything, then `u-jump`, which accepts it; gradients find the topic's
    own expert; the learned router's leader is always `mix-jump`."""

    base_folder: Path
    cache: Path
    store: Path


def make_three_routers(root: Path, *, learned: bool = True) -> ThreeRouters:
    made = ThreeRouters(tiny.write_base(root / "base"), root / "cache", root / "store")
    base = load_base(str(made.base_folder), dtype="fp32", device="cpu", cache=made.cache)
    chat = ChatFormat(base.tokenizer)
    store = ExpertStore.open(made.store)
    _add_chain(root, made, store, base, chat)
    _add_mixture(root, made, store, base, chat)
    if learned:
        _add_router(store, base)
    return made


def _add_chain(root: Path, made: ThreeRouters, store: ExpertStore, base: Base, chat: ChatFormat) -> None:
    for seed, (name, threshold) in enumerate((("u-jump", 1e-6), ("u-lazy", 1 - 1e-6))):
        adapter = tiny.write_adapter(
            root / name, made.base_folder, kind="alora", invocation=chat.generation_prompt, seed=seed, strength=0.05
        )
        _publish(store, base, adapter, name, ManifestDraft(indicators=Indicators(), threshold=threshold))


def _add_mixture(root: Path, made: ThreeRouters, store: ExpertStore, base: Base, chat: ChatFormat) -> None:
    folder = tiny.write_adapter(root / "mix-base", made.base_folder, kind="lora", seed=9)
    _publish(store, base, folder, "mix-base", ManifestDraft())
    store.set_alias("mix-base", BASE_ALIAS, 1)
    feature = GradientFeature(GradientRunner(base, chat), folder, _PROJECTION)
    origin = Origin(base.spec.fingerprint, digest_adapter(folder), FEATURE, _PROJECTION.seed)
    for seed, (name, topic) in enumerate(TOPICS.items(), start=5):
        adapter = tiny.write_adapter(root / name, made.base_folder, kind="lora", seed=seed, strength=0.05)
        prompts = [chat.render([{"role": "user", "content": topic.format(number)}]) for number in range(100, 106)]
        (adapter / CENTROID_FILE).write_bytes(
            Centroid(origin, mean_direction(np.stack([*map(feature.of, prompts)]))).to_bytes()
        )
        _publish(store, base, adapter, name, ManifestDraft())


def _add_router(store: ExpertStore, base: Base) -> None:
    config = base.model.config
    shape = (config.num_hidden_layers, len(_GATES), config.hidden_size)
    experts = [store.catalog.resolve(name) for name in _GATES]
    draft = RouterDraft(
        base_fingerprint=base.spec.fingerprint,
        gates="sigmoid",
        experts=tuple(RoutedExpert(name=e.name, version=e.version, digest=e.digest) for e in experts),
        num_layers=shape[0],
        width=shape[2],
    )
    bias_LE = np.tile(np.array(list(_GATES.values()), np.float32), (shape[0], 1))
    with store.stage() as staged:
        (staged.folder / ROUTER_FILE).write_bytes(
            GateNetwork(np.zeros(shape, np.float32), bias_LE, "sigmoid").to_bytes()
        )
        store.publish_router(staged, draft)


def _publish(store: ExpertStore, base: Base, adapter: Path, name: str, draft: ManifestDraft) -> None:
    with store.stage() as staged:
        copy_adapter(adapter, staged.folder)
        if (adapter / CENTROID_FILE).exists():
            (staged.folder / CENTROID_FILE).write_bytes((adapter / CENTROID_FILE).read_bytes())
        store.publish(staged, draft, inspect_adapter(staged.folder, base.spec, max_rank=128), name=name)
