"""Seeds a new store with the demo experts that are shipped with the code. Knows folders and registration; no HTTP."""

from pathlib import Path

import structlog

import expert_store
from expert_store import (
    ADAPTER_FILES,
    MANIFEST_FILE,
    BaseSpec,
    Catalog,
    ManifestDraft,
    copy_adapter,
    parse_draft,
    read_config,
)
from server.registry import Registry

log = structlog.get_logger()

DEMO_FOLDER = Path(expert_store.__file__).parent / "demo"


async def seed_demo(registry: Registry, spec: BaseSpec, *, folder: Path = DEMO_FOLDER) -> None:
    """Registers the demo experts that a new store lacks, the way an upload is registered.

    Does nothing to a store that has seen any change of a user's; skips experts trained on another base.
    """
    demos = find_demos(folder)
    if not is_new(registry.catalog, frozenset(demos)):
        return
    for name, demo in demos.items():
        if name in registry.catalog.experts:
            continue
        draft = parse_draft((demo / MANIFEST_FILE).read_bytes())
        if draft.base_fingerprint != spec.fingerprint:
            log.warning("demo_expert_skipped", expert=name, reason="it was trained on another base model")
            continue
        await _register(registry, demo, draft, name)


def find_demos(folder: Path) -> dict[str, Path]:
    """Name to folder, in the order of registration.

    The chain asks the newest first, so plain experts are registered before activated ones, which cost less to ask.
    """
    files = (*ADAPTER_FILES, MANIFEST_FILE)
    found = [path for path in folder.glob("*") if all((path / file).is_file() for file in files)]
    found.sort(key=lambda path: (read_config(path).invocation_tokens is not None, path.name))
    return {path.name: path for path in found}


def is_new(catalog: Catalog, demos: frozenset[str]) -> bool:
    """Whether nothing but a (perhaps interrupted) seeding has ever changed this catalog."""
    only_demos = all(name in demos and set(expert.versions) == {1} for name, expert in catalog.experts.items())
    return only_demos and catalog.generation == len(catalog.experts) < max(1, len(demos))


async def _register(registry: Registry, demo: Path, draft: ManifestDraft, name: str) -> None:
    async with registry.stage() as staged:
        copy_adapter(demo, staged.folder)
        await registry.register(staged, draft, name=name)
