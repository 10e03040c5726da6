"""The bundled base and the demo experts that ship with it, in fp32, token by token against transformers and PEFT."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from expert_store import ExpertStore, ExpertVersion
from server.demo import DEMO_FOLDER
from server.engine import Engine, EngineConfig
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from server.model.sampling import Sampling
from server.settings import Settings
from tests.engine.conftest import Recorder
from tests.support import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

COUNT = 24
PROMPTS = (
    "What date is the 3rd of May 2021 in ISO 8601?",
    "sql for: names of users older than 30\nusers(id, name, age, city)",
    "I waited an hour and the soup was cold. Positive or negative?",
    "Tell me about the sea.",
)
NAMES: list[str | None] = [None, "dates", "contacts", "sql", "logs", "sentiment"]


@pytest.fixture(scope="module")
def cache() -> Path:
    """The server's own, so that the base need not be converted again."""
    return Path(Settings().cache)


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[Engine]:
    base = load_base("bundled", dtype="fp32", device="cpu", cache=cache)
    engine = Engine(base, ChatFormat(base.tokenizer), EngineConfig(kv_memory_bytes=1 << 28), Recorder())
    engine.start()
    yield engine
    engine.stop()
    engine.check_integrity()


@pytest.fixture(scope="module")
def base(cache: Path) -> Base:
    return load_base("bundled", dtype="fp32", device="cpu", cache=cache)


@pytest.fixture(scope="module")
def experts(base: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExpertVersion]:
    store = ExpertStore.open(tmp_path_factory.mktemp("store"))
    return {name: tiny.publish(store, base, DEMO_FOLDER / name, name) for name in NAMES if name is not None}


def test_all_demo_experts_in_one_batch_answer_as_peft_does_alone(
    engine: Engine, base: Base, experts: dict[str, ExpertVersion]
) -> None:
    chat = ChatFormat(base.tokenizer)
    prompts = [chat.render([{"role": "user", "content": text}]) for text in PROMPTS]
    asked = [(prompt, experts[name] if name else None) for name in NAMES for prompt in prompts]

    async def answers() -> list[list[int]]:
        async def one(index: int) -> list[int]:
            prompt, expert = asked[index]
            async with await engine.open(prompt, max_new_tokens=COUNT) as session:
                sampling = Sampling(max_new_tokens=COUNT, ignore_eos=True)
                return [token.token async for token in session.generate(expert, sampling)]

        return await asyncio.gather(*(one(index) for index in range(len(asked))))

    together = asyncio.run(answers())
    folder = Path(base.model.name_or_path)
    for name in NAMES:
        model = tiny.oracle(folder, DEMO_FOLDER / name if name else None, torch.float32)
        for (prompt, expert), tokens in zip(asked, together, strict=True):
            if (expert.name if expert else None) == name:
                assert tokens == tiny.oracle_tokens(model, [*prompt.tokens, *tiny.forced(chat, expert)], COUNT)
