"""The whole application over a tiny base and a real store, with the engine faked; adapters as PEFT writes them."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from expert_store import ROUTER_FILE, ExpertStore, RoutedExpert, RouterDraft
from server.app import build_app
from server.model.base import Base
from server.model.chat import ChatFormat
from server.model.gates import GateNetwork
from server.settings import Settings
from tests.support import asgi, tiny
from tests.support.fake_engine import FakeEngine

MANIFEST = {
    "description": "an expert for tests",
    "samples": ["hello there"],
    "indicators": {"accept": "<<pos>>", "reject": "<<neg>>"},
}


@dataclass
class App:
    """A running application and what it runs on."""

    app: FastAPI
    settings: Settings
    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def engine(self) -> FakeEngine:
        [engine] = self.engines
        return engine

    @property
    def store(self) -> ExpertStore:
        store = self.app.state.serving.registry._store
        assert isinstance(store, ExpertStore)
        return store

    async def ask(self, method: str, path: str, body: Any = None, **content: Any) -> asgi.Reply:
        return await asgi.ask(self.app, method, path, json_body=body, **content)

    def begin(self, method: str, path: str, body: Any = None, **content: Any) -> asgi.Exchange:
        return asgi.begin(self.app, method, path, json_body=body, **content)

    async def register(self, folder: Path, name: str, **fields: Any) -> asgi.Reply:
        return await self.upload(registration_parts(folder, name, **fields))

    async def upload(self, parts: "list[Part]", *, chunk_bytes: int = 4096, path: str = "/experts") -> asgi.Reply:
        body, headers = multipart(parts)
        chunks = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)]
        return await self.ask("POST", path, chunks=chunks or [b""], headers=headers)

    async def metric(self, line: str) -> float:
        """The value of one sample, such as `lora_relay_requests_total{endpoint="route",outcome="routed"}`."""
        text = (await self.ask("GET", "/metrics")).body.decode()
        values = [row.rpartition(" ")[2] for row in text.splitlines() if row.rpartition(" ")[0] == line]
        return float(values[0]) if values else 0.0


@dataclass(frozen=True)
class Part:
    """One part of a form; a file if it has a file name."""

    field: str
    data: bytes
    file_name: str | None = None


def multipart(parts: list[Part], boundary: str = "xxBOUNDARYxx") -> tuple[bytes, dict[str, str]]:
    body = b""
    for part in parts:
        name = f'; filename="{part.file_name}"' if part.file_name else ""
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{part.field}"{name}\r\n\r\n'.encode()
        body += part.data + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), {"content-type": f"multipart/form-data; boundary={boundary}"}


def registration_parts(folder: Path, name: str | None, **fields: Any) -> list[Part]:
    """A good registration; `manifest=None` leaves the manifest out."""
    fields = {"manifest": json.dumps(MANIFEST), **({} if name is None else {"name": name}), **fields}
    texts = [Part(key, str(value).encode()) for key, value in fields.items() if value is not None]
    files = [
        Part("adapter_config", (folder / "adapter_config.json").read_bytes(), "adapter_config.json"),
        Part("adapter_model", (folder / "adapter_model.safetensors").read_bytes(), "adapter_model.safetensors"),
    ]
    return texts + files


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def chat(base_folder: Path) -> ChatFormat:
    from transformers import AutoTokenizer

    return ChatFormat(AutoTokenizer.from_pretrained(base_folder))


@pytest.fixture(scope="session")
def alora(base_folder: Path, chat: ChatFormat, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "alora"
    return tiny.write_adapter(folder, base_folder, kind="alora", invocation=chat.generation_prompt, targets=["q_proj"])


@pytest.fixture(scope="session")
def lora(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    return tiny.write_adapter(folder, base_folder, kind="lora", targets=["v_proj"], seed=1)


Start = Callable[..., Any]


@pytest.fixture
def start(base_folder: Path, tmp_path: Path) -> Start:
    """`async with start(setting=value) as app` runs an application of its own, over the same store each time."""
    return partial(running_app, base_folder, tmp_path)


@asynccontextmanager
async def running_app(base_folder: Path, root: Path, **settings: Any) -> AsyncIterator[App]:
    values = {"base": str(base_folder), "store": root / "store", "cache": root / "cache", "no_demo": True}
    configured = Settings(**{**values, "dtype": "fp32", **settings})
    world = App(FastAPI(), configured)

    def make_engine(base: Base, chat: ChatFormat, config: Any, observer: Any) -> FakeEngine:
        world.engines.append(FakeEngine(base, chat, config, observer))
        return world.engine

    world.app = build_app(configured, make_engine=make_engine)
    async with asgi.running(world.app):
        yield world


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def world(start: Start) -> AsyncIterator[App]:
    """An application with an empty store."""
    async with start() as running:
        yield running


def publish_router(world: App, base: Base, biases: dict[str, float]) -> None:
    """As another process would: gates that do not look at the prompt, one for each live expert named."""
    draft, network = new_router(world, base, biases)
    store = ExpertStore.open(world.settings.store)
    with store.stage() as staged:
        (staged.folder / ROUTER_FILE).write_bytes(network.to_bytes())
        store.publish_router(staged, draft)


def new_router(world: App, base: Base, biases: dict[str, float]) -> tuple[RouterDraft, GateNetwork]:
    config = base.model.config
    shape = (config.num_hidden_layers, len(biases), config.hidden_size)
    experts = [world.store.catalog.resolve(name) for name in biases]
    bias_LE = np.tile(np.array(list(biases.values()), np.float32), (shape[0], 1))
    draft = RouterDraft(
        base_fingerprint=base.spec.fingerprint,
        gates="sigmoid",
        experts=tuple(RoutedExpert(name=e.name, version=e.version, digest=e.digest) for e in experts),
        num_layers=shape[0],
        width=shape[2],
    )
    return draft, GateNetwork(np.zeros(shape, np.float32), bias_LE, "sigmoid")


def router_parts(draft: "RouterDraft | dict[str, Any]", weights: bytes) -> list[Part]:
    manifest = draft.model_dump_json() if isinstance(draft, RouterDraft) else json.dumps(draft)
    return [Part("router", weights, ROUTER_FILE), Part("manifest", manifest.encode(), "manifest.json")]
