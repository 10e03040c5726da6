"""Seeding a new store, and only a new one."""

import json
from pathlib import Path
from types import MappingProxyType

import pytest

from expert_store import Catalog, Expert
from server.demo import find_demos, is_new, seed_demo
from tests.api.conftest import App
from tests.support.catalogs import make_version


@pytest.fixture
def demos(tmp_path: Path, alora: Path, lora: Path, world: App) -> Path:
    """Three demo folders for the application's base: two activated, one plain."""
    folder = tmp_path / "demo"
    for name, adapter in (("sql", alora), ("plain", lora), ("dates", alora)):
        (folder / name).mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name / file).write_bytes((adapter / file).read_bytes())
        manifest = {
            "base_fingerprint": world.engine.base.spec.fingerprint,
            "indicators": {"accept": "<<pos>>", "reject": "<<neg>>"},
        }
        (folder / name / "manifest.json").write_text(json.dumps(manifest))
    (folder / "README.md").write_text("not a demo")
    return folder


async def seed(world: App, folder: Path) -> None:
    await seed_demo(world.app.state.serving.registry, world.engine.base.spec, folder=folder)


@pytest.mark.anyio
async def test_a_new_store_gets_every_demo_and_the_plain_one_is_asked_last(world: App, demos: Path) -> None:
    assert list(find_demos(demos)) == ["plain", "dates", "sql"]
    await seed(world, demos)
    assert world.store.catalog.chain == ("sql", "dates", "plain")
    await seed(world, demos)
    assert world.store.catalog.generation == 3


@pytest.mark.anyio
async def test_a_demo_gets_a_profile_from_its_samples(world: App, demos: Path) -> None:
    path = demos / "sql" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "samples": ["how many users are there?"]}))
    await seed(world, demos)
    experts = world.store.catalog.experts
    assert [name for name, expert in experts.items() if expert.versions[1].profile is not None] == ["sql"]
    assert world.store.verify() == []


@pytest.mark.anyio
async def test_an_interrupted_seeding_goes_on(world: App, demos: Path, lora: Path) -> None:
    manifest = (demos / "plain" / "manifest.json").read_text()
    await world.register(lora, "plain", manifest=manifest)
    await seed(world, demos)
    assert world.store.catalog.chain == ("sql", "dates", "plain")


@pytest.mark.anyio
async def test_a_store_somebody_has_used_is_left_alone(world: App, demos: Path, alora: Path) -> None:
    await world.register(alora, "mine")
    await seed(world, demos)
    assert list(world.store.catalog.experts) == ["mine"]


@pytest.mark.anyio
async def test_demos_of_another_base_are_skipped(world: App, demos: Path) -> None:
    path = demos / "sql" / "manifest.json"
    path.write_text(json.dumps({"base_fingerprint": "sha256:" + "1" * 64}))
    await seed(world, demos)
    assert world.store.catalog.chain == ("dates", "plain")


def test_newness_is_read_from_the_catalog() -> None:
    def catalog(generation: int, *names: str) -> Catalog:
        experts = {name: Expert(name, {1: make_version(name)}, {"live": 1}) for name in names}
        return Catalog(generation, MappingProxyType(experts), ())

    demos = frozenset({"a", "b"})
    assert is_new(catalog(0), demos)
    assert is_new(catalog(1, "a"), demos)
    assert not is_new(catalog(2, "a", "b"), demos)
    assert not is_new(catalog(2, "a"), demos)
    assert not is_new(catalog(1, "x"), demos)
    assert not is_new(catalog(4), demos)
