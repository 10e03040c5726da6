"""One tiny base, seven adapters of unlike kinds, ranks and targets, and an engine that serves them in fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from expert_store import ExpertStore, ExpertVersion, Indicators
from server.engine import Engine, EngineConfig, Occupancy, PoolEvent, StepStats
from server.model import decode_graphs
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from tests.support import tiny


class Recorder:
    """Keeps what the engine reports."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.occupancies: list[Occupancy] = []
        self.events: list[PoolEvent] = []

    def on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def on_occupancy(self, occupancy: Occupancy) -> None:
        self.occupancies.append(occupancy)

    def on_pool_event(self, event: PoolEvent) -> None:
        self.events.append(event)


@dataclass(frozen=True)
class World:
    """Everything the parity tests need."""

    folder: Path
    base: Base
    chat: ChatFormat
    store: ExpertStore
    experts: dict[str, ExpertVersion]
    adapters: dict[str, Path]
    engine: Engine
    recorder: Recorder


ADAPTERS: dict[str, dict[str, object]] = {
    "act4": {"kind": "alora", "rank": 4},
    "act16": {"kind": "alora", "rank": 16, "targets": ["q_proj", "v_proj"]},
    "act64": {"kind": "alora", "rank": 64, "targets": ["down_proj", "o_proj"]},
    "late8": {"kind": "alora", "rank": 8, "late": True},  # woken by the indicators' first tokens
    "plain8": {"kind": "lora", "rank": 8},
    "plain64": {"kind": "lora", "rank": 64, "targets": ["k_proj", "gate_proj"], "use_rslora": True},
    "plain12": {"kind": "lora", "rank": 4, "rank_pattern": {"q_proj": 12}, "alpha_pattern": {"v_proj": 3}},
}


def small_config(**changes: int) -> EngineConfig:
    """Without the prefix cache, so that every test computes its own prompts; `test_prefix` has it."""
    values = {"kv_memory_bytes": 1 << 24, "step_tokens": 64, "num_slots": 32, "prefix_cache": False, **changes}
    return EngineConfig(**values)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base"))


@contextmanager
def new_world(
    base_folder: Path, root: Path, device: str = "cpu", record_decodes: decode_graphs.Recorder | None = None
) -> Iterator[World]:
    """`root` is an empty folder."""
    base = load_base(str(base_folder), dtype="fp32", device=device, cache=root / "cache")
    chat = ChatFormat(base.tokenizer)
    store = ExpertStore.open(root / "store")
    adapters, experts = {}, {}
    shared = chat.indicator_tokens(Indicators()).shared
    for seed, (name, given) in enumerate(ADAPTERS.items()):
        options = {key: value for key, value in given.items() if key != "late"}
        invocation = shared if given.get("late") else chat.generation_prompt
        adapters[name] = tiny.write_adapter(root / name, base_folder, seed=seed, invocation=invocation, **options)
        experts[name] = tiny.publish(store, base, adapters[name], name)
    recorder = Recorder()
    engine = Engine(base, chat, replace(small_config(), recorder=record_decodes), recorder)
    engine.start()
    try:
        yield World(base_folder, base, chat, store, experts, adapters, engine, recorder)
    finally:
        engine.stop()
    engine.check_integrity()


@pytest.fixture(scope="session")
def world(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with new_world(base_folder, tmp_path_factory.mktemp("world")) as made:
        yield made
