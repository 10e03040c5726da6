"""What running adds to the application."""

import gc
import socket

import pytest
import uvicorn
from fastapi import FastAPI

from server.run import _Server


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_garbage_collector_looks_no_more_at_what_was_there_at_the_start() -> None:
    server = _Server(config := uvicorn.Config(FastAPI(), lifespan="off", log_config=None))
    config.load()
    server.lifespan = config.lifespan_class(config)
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        await server.startup([listener])
        assert gc.get_freeze_count() > 0
        await server.shutdown([listener])
    finally:
        gc.unfreeze()
