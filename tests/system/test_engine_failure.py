"""A server whose engine fails ends with an exit status that says so, for its supervisor to start it again."""

from pathlib import Path

from tests.support import tiny
from tests.support.server import RelayServer

BREAKS_AT_THE_FIRST_STEP = """
from server.engine.runner import Runner
Runner.run = None
from server.cli import app
app()
"""


def test_the_process_ends_once_its_engine_has_failed(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")
    log = tmp_path / "log"
    program = ("-c", BREAKS_AT_THE_FIRST_STEP)
    server = RelayServer(store=tmp_path / "store", base=str(base), log=log, flags=("--no-demo",), program=program)
    with server:
        answer = server.client.post(server.url + "/generate", json={"prompt": "hello", "max_new_tokens": 4})
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_stopped"
        assert server.ended() == 1
    told = log.read_text()
    assert "engine_failed" in told
    assert "the engine failed and the server has stopped" in told
