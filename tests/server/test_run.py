"""What running adds to the application."""

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
import uvicorn
from fastapi import FastAPI

from server.run import StartupFailed, _bind, _Server
from server.settings import Settings


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_garbage_collector_looks_no_more_at_what_was_there_at_the_start() -> None:
    app = FastAPI()
    server = _Server(config := uvicorn.Config(app, lifespan="off", log_config=None), app)
    config.load()
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        await server.startup([listener])
        assert gc.get_freeze_count() > 0
        await server.shutdown([listener])
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_of_two_servers_on_one_port_the_later_one_says_so_and_shuts_down(loop: Literal["asyncio", "auto"]) -> None:
    ended: list[bool] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        ended.append(True)

    with _bind(Settings(port=0)) as first, _bind(Settings(port=first.getsockname()[1])) as second:
        first.listen()
        port = first.getsockname()[1]
        app = FastAPI(lifespan=lifespan)
        server = _Server(uvicorn.Config(app, port=port, loop=loop, log_config=None), app)
        with pytest.raises(StartupFailed, match=rf"127\.0\.0\.1:{port} cannot be listened on .*: choose another"):
            server.run(sockets=[second])
    assert ended == [True]
