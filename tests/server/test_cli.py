"""The `relay` command, against a real server process stand-in: the application behind a local socket."""

import errno
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expert_store import ExpertStore
from server import cli
from server.cli import app
from server.settings import Settings
from tests.store.samples import publish

TEXT = "[bold] SELECT 1\t" + "from a very long table " * 12 + "\n  where  x = 1"
MEMBERS = [{"expert": name, "asked": name != "shy"} for name in ("sql", "shy", "dates")]
ROUTING = {
    "router": "chain",
    "expert": "sql",
    "version": 3,
    "digest": "sha256:0",
    "score": 0.98,
    "fallback": False,
    "reason": "accepted",
    "considered": [{"expert": "sql", "version": 3, "score": 0.98, "accepted": True}],
    "catalog_generation": 17,
    "shortlist": {"size": 8, "proposed": 8, "unprofiled": 1, "unfamiliar": 2, "left_out": 289, "ms": 0.4},
    "experts": [{"expert": "sql", "version": 3, "digest": "sha256:0", "weight": 1.0}],
    "shadow": [
        {
            "router": "learned",
            "ms": 7.0,
            "expert": None,
            "version": None,
            "score": None,
            "fallback": False,
            "experts": [
                {"expert": "sql", "version": 3, "digest": "sha256:0", "weight": 0.75},
                {"expert": "dates", "version": 1, "digest": "sha256:9", "weight": 0.25},
            ],
            "agreed": True,
            "problem": None,
        },
        {
            "router": "gradient",
            "ms": 0.0,
            "expert": None,
            "version": None,
            "score": None,
            "fallback": None,
            "experts": [],
            "agreed": None,
            "problem": "router gradient is not ready: no features",
        },
    ],
}
ROUTERS = {
    "default": "chain",
    "routers": [
        {"router": "chain", "ready": True, "version": None, "missing": [], "run": None, "pending": 0, "problems": []},
        {
            "router": "gradient",
            "ready": True,
            "version": 1,
            "missing": [],
            "run": None,
            "pending": 4,
            "problems": ["a@1 gets none"],
        },
        {
            "router": "learned",
            "ready": False,
            "version": None,
            "missing": ["no"],
            "run": "relay train x",
            "pending": 0,
            "problems": [],
        },
    ],
    "catalog_generation": 17,
}
ANSWERS: dict[str, tuple[int, dict[str, Any]]] = {
    "POST /route": (
        200,
        {
            "id": "route-1",
            "routing": ROUTING,
            "usage": {"prompt_tokens": 9, "completion_tokens": 0, "computed_tokens": 14},
            "timings": {"queue_ms": 0.1, "routing_ms": 12.0, "first_token_ms": None, "total_ms": 13.0},
        },
    ),
    "GET /routers": (200, ROUTERS),
    "GET /fallback": (200, {"expert": "sql", "version": None, "catalog_generation": 17}),
    "PUT /fallback": (200, {"expert": "sql", "version": 3, "catalog_generation": 18}),
    "POST /generate": (
        200,
        {
            "text": TEXT,
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 53, "completion_tokens": 12, "computed_tokens": 61},
            "routing": ROUTING,
            "timings": {"total_ms": 81.4},
        },
    ),
    "PUT /experts/sql/aliases/live": (200, {"name": "sql", "alias": "live", "version": 2, "catalog_generation": 18}),
    "DELETE /experts/sql/aliases/old": (
        200,
        {"name": "sql", "alias": "old", "version": None, "catalog_generation": 18},
    ),
    "DELETE /experts/sql/versions/1": (200, {"name": "sql", "version": 1, "catalog_generation": 18}),
    "GET /chain": (200, {"members": MEMBERS, "catalog_generation": 17}),
    "PUT /chain": (200, {"members": MEMBERS[:1], "catalog_generation": 18}),
    "GET /experts": (
        200,
        {
            "experts": [
                {
                    "name": "sql",
                    "description": "[bold] SQL",
                    "live_version": 3,
                    "kind": "lora",
                    "gated": True,
                    "chain_position": 0,
                }
            ],
            "catalog_generation": 17,
        },
    ),
    "GET /experts/nobody": (404, {"error": {"message": "there is no expert 'nobody'", "code": "unknown_expert"}}),
    "GET /experts/..%2Fchain": (404, {"error": {"message": "there is no expert '../chain'", "code": "unknown_expert"}}),
    "POST /experts": (
        201,
        {
            "name": "sql",
            "version": 4,
            "digest": "sha256:1",
            "kind": "alora",
            "rank": 16,
            "checks": [{"name": "files", "passed": True, "detail": "there"}],
            "catalog_generation": 18,
        },
    ),
    "POST /routers/learned": (
        201,
        {
            "router": "learned",
            "version": 2,
            "digest": "sha256:1",
            "gates": "sigmoid",
            "experts": ["sql@4", "dates@1"],
            "checks": [{"name": "weights", "passed": True, "detail": "finite"}],
            "catalog_generation": 18,
        },
    ),
}


class FakeServer(BaseHTTPRequestHandler):
    """Answers from the table above and keeps what it was sent."""

    seen: list[tuple[str, bytes]] = []  # noqa: RUF012 - one list for the whole server, on purpose

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen.append((f"{self.command} {self.path}", body))
        status, answer = ANSWERS.get(f"{self.command} {self.path}", (200, {}))
        data = json.dumps(answer).encode() if answer else b"<html>"
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeServer)
    FakeServer.seen.clear()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("RELAY_URL", address)
    yield address
    server.shutdown()
    server.server_close()


def relay(*arguments: str) -> tuple[int, str]:
    """Exit status and everything printed, as one line."""
    result = CliRunner().invoke(app, arguments, env={"TERM": "dumb"})
    return result.exit_code, re.sub(r"\s+", " ", result.output)


@pytest.mark.usefixtures("url")
def test_route_shows_who_would_answer_and_who_was_asked() -> None:
    status, output = relay("route", "how many users?")
    assert status == 0
    assert "sql@3 accepted score 0.9800" in output
    assert "mine" in output
    assert "shortlist: 8 by their profiles and 1 without a profile, 2 left out by their guards, " in output
    assert "289 left out, 0.4 ms" in output
    assert json.loads(FakeServer.seen[-1][1]) == {"prompt": "how many users?"}


@pytest.mark.usefixtures("url")
def test_route_shows_what_shadows_made_of_it() -> None:
    _, output = relay("route", "x", "--shadow", "learned", "--shadow", "gradient")
    assert "shadow learned agrees: 0.75 sql@3 + 0.25 dates@1, 7 ms" in output
    assert "shadow gradient: router gradient is not ready: no features" in output
    assert json.loads(FakeServer.seen[-1][1]) == {"prompt": "x", "shadow": ["learned", "gradient"]}


@pytest.mark.usefixtures("url")
def test_routers_shows_what_is_missing() -> None:
    status, output = relay("routers")
    assert status == 0
    assert "chain (default) yes - - -" in output
    assert "gradient yes 1 a@1 gets none; 4 centroids, which are being made -" in output
    assert "learned no - no relay train x" in output


@pytest.mark.usefixtures("url")
def test_routers_add_sends_what_the_recipe_wrote(tmp_path: Path) -> None:
    status, output = relay("routers", "add", str(tmp_path))
    assert (status, "router.safetensors is not there" in output) == (1, True)
    for name in ("router.safetensors", "manifest.json"):
        (tmp_path / name).write_text(f"content of {name}")
    status, output = relay("routers", "add", str(tmp_path))
    assert status == 0
    assert "learned, version 2 over sql@4, dates@1" in output
    assert "weights: finite" in output
    sent = FakeServer.seen[-1][1].decode()
    for field, name in (("router", "router.safetensors"), ("manifest", "manifest.json")):
        assert f'name="{field}"' in sent
        assert f"content of {name}" in sent


@pytest.mark.usefixtures("url")
def test_route_passes_on_whether_guards_are_heard() -> None:
    for flag, guard in (("--guard", True), ("--no-guard", False)):
        relay("route", "x", flag)
        assert json.loads(FakeServer.seen[-1][1]) == {"prompt": "x", "guard": guard}


@pytest.mark.usefixtures("url")
def test_route_asks_for_a_shortlist() -> None:
    relay("route", "x", "--shortlist", "0")
    assert json.loads(FakeServer.seen[-1][1]) == {"prompt": "x", "shortlist": 0}


@pytest.mark.usefixtures("url")
def test_an_answer_can_be_had_as_json() -> None:
    _, output = relay("route", "x", "--router", "none", "--json")
    assert json.loads(output)["routing"] == ROUTING
    assert json.loads(FakeServer.seen[-1][1]) == {"prompt": "x", "router": "none"}


@pytest.mark.usefixtures("url")
def test_experts_are_listed_as_they_are_described() -> None:
    status, output = relay("experts", "list")
    assert status == 0
    assert "sql 3 lora, gated 1 [bold] SQL" in output


@pytest.mark.usefixtures("url")
def test_the_servers_own_message_is_shown() -> None:
    status, output = relay("experts", "show", "nobody")
    assert status == 1
    assert "there is no expert 'nobody' (404 unknown_expert)" in output
    relay("experts", "show", "../chain")
    assert FakeServer.seen[-1][0] == "GET /experts/..%2Fchain"


@pytest.mark.usefixtures("url")
def test_the_fallback_is_set_unset_and_shown() -> None:
    assert relay("fallback", "sql") == (0, "where nobody accepts, sql@3 answers ")
    assert FakeServer.seen[-1] == ("PUT /fallback", b'{"expert":"sql"}')
    assert relay("fallback", "--none")[0] == 0
    assert FakeServer.seen[-1] == ("PUT /fallback", b'{"expert":null}')
    status, output = relay("fallback")
    assert (status, FakeServer.seen[-1]) == (0, ("GET /fallback", b""))
    assert "no live version: the base model does" in output
    assert relay("fallback", "sql", "--none")[0] == 2


@pytest.mark.usefixtures("url")
def test_generate_shows_the_answer_and_who_gave_it() -> None:
    command = ["generate", "how many?", "--expert", "sql@live", "--max-new-tokens", "20", "--seed", "3"]
    result = CliRunner().invoke(app, command, env={"TERM": "dumb"})
    assert (result.exit_code, result.stdout) == (0, TEXT + "\n"), "the text as it is, and nothing else"
    assert result.stderr.strip() == "sql@3, accepted, stop; 12 tokens, 81 ms"
    sent = {"prompt": "how many?", "expert": "sql@live", "max_new_tokens": 20, "seed": 3}
    assert json.loads(FakeServer.seen[-1][1]) == sent


@pytest.mark.usefixtures("url")
def test_aliases_are_moved_and_removed_and_versions_deleted() -> None:
    assert relay("experts", "alias", "sql", "live", "2") == (0, "sql@live is version 2 ")
    assert FakeServer.seen[-1] == ("PUT /experts/sql/aliases/live", b'{"version":2}')
    assert relay("experts", "unalias", "sql", "old") == (0, "sql@old is gone ")
    assert relay("experts", "delete", "sql", "1")[0] == 0
    assert FakeServer.seen[-1] == ("DELETE /experts/sql/versions/1", b"")


@pytest.mark.usefixtures("url")
def test_the_chain_is_shown_and_set() -> None:
    asked = "asked, first to last: sql, dates; passed by, without a live version that can choose: shy"
    assert relay("chain") == (0, f"{asked} (catalog generation 17) ")
    assert relay("chain", "dates", "--generation", "17")[0] == 0
    assert FakeServer.seen[-1] == ("PUT /chain", b'{"order":["dates"],"generation":17}')
    assert relay("chain", "--none")[0] == 0
    assert FakeServer.seen[-1] == ("PUT /chain", b'{"order":[]}')
    assert [relay("chain", *wrong)[0] for wrong in (["--generation", "17"], ["dates", "--none"])] == [2, 2]


@pytest.mark.usefixtures("url")
def test_add_sends_both_files_and_the_manifest(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "manifest.json"):
        (tmp_path / name).write_text(f"content of {name}")
    status, output = relay("experts", "add", str(tmp_path), "--name", "sql", "--no-activate")
    assert status == 0
    assert "sql@4 alora, rank 16" in output
    sent = FakeServer.seen[-1][1].decode()
    for field in ("adapter_config", "adapter_model", "manifest", "name", "activate"):
        assert f'name="{field}"' in sent
    assert "content of manifest.json" in sent


@pytest.mark.usefixtures("url")
def test_add_sends_the_gate_that_lies_beside(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    for folder in (tmp_path, tmp_path / "gate"):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_text(f"{folder.name} {name}")
    assert relay("experts", "add", str(tmp_path), "--name", "sql")[0] == 0
    sent = FakeServer.seen[-1][1].decode()
    for field, name in (("gate_config", "adapter_config.json"), ("gate_weights", "adapter_model.safetensors")):
        assert f'name="{field}"' in sent
        assert f"gate {name}" in sent


@pytest.mark.usefixtures("url")
def test_add_says_which_file_is_missing(tmp_path: Path) -> None:
    status, output = relay("experts", "add", str(tmp_path))
    assert status == 1
    assert "adapter_config.json is not there" in output
    for name in ("adapter_config.json", "adapter_model.safetensors", "gate/adapter_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    status, output = relay("experts", "add", str(tmp_path))
    assert status == 1
    assert "gate/adapter_model.safetensors is not there" in output


@pytest.mark.usefixtures("url")
def test_a_server_that_is_not_there_or_is_another_one() -> None:
    status, output = relay("experts", "list", "--url", "http://127.0.0.1:1")
    assert (status, "start one with `relay serve`" in output) == (1, True)
    status, output = relay("experts", "show", "something-else")
    assert (status, "not as a LoRA Relay server does" in output) == (1, True)
    assert relay("experts", "list", "--url", "nonsense")[0] == 1
    status, output = relay("experts", "list", "--url", "http://a..b:1")
    assert (status, "http://a..b:1 could not be asked" in output) == (1, True)
    status, output = relay("experts", "show", "a\tb")
    assert (status, "cannot be the name of an expert" in output) == (1, True)


def test_verify_reads_a_store_without_a_server(tmp_path: Path) -> None:
    store = ExpertStore.open(tmp_path / "store")
    version = publish(store, "sql")
    assert relay("experts", "verify", "--store", str(tmp_path / "store"))[0] == 0
    (version.folder / "adapter_model.safetensors").write_bytes(b"changed")
    status, output = relay("experts", "verify", "--store", str(tmp_path / "store"))
    assert (status, "sql@1" in output) == (1, True)
    status, output = relay("experts", "verify", "--store", str(tmp_path / "nowhere"))
    assert (status, "is not there" in output) == (1, True)
    assert not (tmp_path / "nowhere").exists()


def test_verify_says_where_it_did_without_the_lock(tmp_path: Path) -> None:
    publish(ExpertStore.open(tmp_path / "store"), "sql")
    (tmp_path / "store" / "catalog.lock").unlink()
    status, output = relay("experts", "verify", "--store", str(tmp_path / "store"))
    assert status == 0
    assert "catalog.lock cannot be locked (No such file or directory): checked without it" in output
    assert "every file is as published" in output


def test_what_the_system_refuses_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(root: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(root / "catalog.json"))

    monkeypatch.setattr(cli, "verify_store", refuse)
    status, output = relay("experts", "verify", "--store", str(tmp_path))
    assert (status, output.strip()) == (1, f"{tmp_path}/catalog.json: Permission denied")


def test_serve_has_a_flag_for_every_setting_and_names_its_variable() -> None:
    status, output = relay("serve", "--help")
    assert status == 0
    for name in Settings.model_fields:
        assert "--" + name.replace("_", "-") in output
        assert "RELAY_" + name.upper() in output


def test_a_bad_setting_is_told_in_one_line() -> None:
    status, output = relay("serve", "--port", "99999", "--dtype", "fp8")
    assert status == 1
    assert "--port" in output
    assert "fp8" in output
    assert "Traceback" not in output
    status, output = relay("serve", "--store", "~nobody-of-that-name/store")
    assert (status, "--store: ~nobody-of-that-name/store" in output, "Traceback" in output) == (1, True, False)


def test_serve_that_cannot_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--base", str(tmp_path / "nope")]
    ended = subprocess.run([*command, "--store", str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert "there is no such folder" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_train_is_mounted() -> None:
    status, output = relay("train", "--help")
    assert (status, "see" in output) == (0, True)
    assert relay("train", "see", "--no-such-flag")[0] == 2


def test_asking_does_not_load_torch() -> None:
    code = "import sys, server.cli; sys.exit('torch' in sys.modules or 'fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=200).returncode == 0
