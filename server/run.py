"""Runs the application under uvicorn: socket, signals, startup errors. Knows no routes and builds no collaborators."""

import errno
import gc
import logging
import os
import socket
from contextlib import suppress

import structlog
import uvicorn
from fastapi import FastAPI
from transformers.utils.logging import disable_progress_bar

from expert_store import StoreError
from server.app import build_app
from server.errors import EngineStopped, RelayError
from server.logs import configure_logging
from server.protocol import BoundedProtocol
from server.settings import Settings

log = structlog.get_logger()

SHUTDOWN_SECONDS = 30
# Longer than clients and proxies keep connections that nothing is sent on (httpx 5 s, aiohttp 15, nginx 60), so that it
# is they who close: a request on its way to a connection that the server closes just then is lost.
KEEP_ALIVE_SECONDS = 75


class StartupFailed(RelayError):
    """The server did not come up, for a reason an operator can mend."""


def run_server(settings: Settings) -> None:
    """Serves until it is told to stop.

    Raises RelayError or StoreError where it cannot start, EngineStopped where its engine failed later.
    """
    configure_logging(settings.log_level, settings.log_format)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    app = build_app(settings)
    logging.getLogger("uvicorn.error").addFilter(_QuietStartup(app))
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = _Server(config, app)
    with suppress(KeyboardInterrupt, SystemExit):  # uvicorn exits by itself when a startup fails
        server.run(sockets=[_bind(settings)])
    if not server.started:
        raise _reason(app)
    if server.engine_failed:
        raise EngineStopped("the engine failed and the server has stopped: its log says why, and restarting it is safe")


def _reason(app: FastAPI) -> RelayError | StoreError:
    """Why the server did not come up."""
    error = app.state.startup_error
    if isinstance(error, RelayError | StoreError):
        return error
    return StartupFailed(f"the server could not start: {error or 'its log says why'}")


class _Server(uvicorn.Server):
    """Says where it listens once it does. Raises StartupFailed where it cannot. Stops by itself once the engine has
    failed, so that whoever supervises it starts it again.

    What was loaded until then stays, so the garbage collector need not look through it again: that took a quarter of a
    second, in which nobody got a token.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self.engine_failed = False

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop; uvicorn asks ten times a second."""
        serving = getattr(self._app.state, "serving", None)
        self.engine_failed = serving is not None and not serving.engine_alive()
        return self.engine_failed or await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
            if self.started and sockets and sockets[0].fileno() < 0:  # uvloop closes it and raises nothing
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        except OSError as error:  # another server bound the port as well, and listened first
            await self.lifespan.shutdown()
            raise _cannot_listen(self.config.host, self.config.port, error) from error
        if self.started:
            gc.collect()
            gc.freeze()
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            log.info("ready", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")


class _QuietStartup(logging.Filter):
    """Drops uvicorn's traceback of a startup error that is told in one line."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__()
        self._app = app

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002
        return getattr(self._app.state, "startup_error", None) is None


def _bind(settings: Settings) -> socket.socket:
    """Takes the port before the model is loaded, so that a taken one is noticed at once. Raises StartupFailed."""
    try:
        [family, kind, *_, address] = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that IDNA does not know
        raise _cannot_listen(settings.host, settings.port, error) from error
    return listener


def _cannot_listen(host: str, port: int, error: OSError | UnicodeError) -> StartupFailed:
    return StartupFailed(f"{host}:{port} cannot be listened on ({error}): choose another --host or --port")
