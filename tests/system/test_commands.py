"""The `relay` commands against a real server on a tiny base: a pool run from the terminal."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli import app
from server.model.base import load_base
from server.model.chat import ChatFormat
from tests.support import tiny
from tests.support.server import RelayServer


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    folder = tiny.write_base(root / "tiny")
    chat = ChatFormat(load_base(str(folder), dtype="fp32", device="cpu", cache=root).tokenizer)
    return tiny.write_adapter(root / "one", folder, kind="alora", invocation=chat.generation_prompt)


@pytest.fixture(scope="module")
def server(adapter: Path) -> Iterator[RelayServer]:
    root = adapter.parent
    flags = ("--dtype", "fp32", "--no-demo", "--kv-memory", "64MiB")
    with RelayServer(store=root / "store", base=str(root / "tiny"), log=root / "log", flags=flags) as running:
        selecting = {"indicators": {"accept": "<<pos>>", "reject": "<<neg>>"}, "threshold": 0.001}
        for name in ("one", "one", "two"):
            running.register(adapter, name, selecting)
        yield running


def relay(server: RelayServer, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*arguments, "--url", server.url], env={"TERM": "dumb"})
    return result.exit_code, re.sub(r"\s+", " ", result.output).strip()


def test_a_pool_is_run_from_the_terminal(server: RelayServer) -> None:
    answered, output = relay(server, "generate", "hello", "--max-new-tokens", "4")
    assert (answered, "two@1, accepted" in output) == (0, True)
    assert "one@2, pinned" in relay(server, "generate", "hello", "--expert", "one", "--max-new-tokens", "4")[1]

    assert relay(server, "experts", "alias", "one", "live", "1") == (0, "one@live is version 1")
    assert "one@1, pinned" in relay(server, "generate", "hello", "--expert", "one", "--max-new-tokens", "4")[1]
    assert relay(server, "experts", "alias", "one", "old", "2") == (0, "one@old is version 2")
    refused, reason = relay(server, "experts", "delete", "one", "2")
    assert (refused, "old" in reason) == (1, True)
    assert relay(server, "experts", "unalias", "one", "old") == (0, "one@old is gone")
    assert relay(server, "experts", "delete", "one", "2")[0] == 0
    assert relay(server, "generate", "hello", "--expert", "one@2")[0] == 1

    status, shown = relay(server, "chain")
    assert (status, "asked, first to last: two, one (" in shown) == (0, True)
    assert "asked, first to last: one, two (" in relay(server, "chain", "one", "two")[1]
    stale, reason = relay(server, "chain", "two", "--generation", "1")
    assert (stale, "generation" in reason) == (1, True)
    assert "one@1, accepted" in relay(server, "generate", "hello", "--max-new-tokens", "4")[1]
