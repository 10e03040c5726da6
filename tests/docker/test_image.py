"""The Dockerfile keeps its promises: pinned, small, not root, healthy by /readyz, settings that the server knows."""

import fnmatch
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.settings import ENVIRONMENT_PREFIX, Settings, load_settings
from tests.docker.files import ROOT, dockerfile, image_environment

STAGES = dockerfile()
FINAL = STAGES[-1]
START = ROOT / "docker" / "start.sh"
HEALTHCHECK = ROOT / "docker" / "healthcheck.py"


def _final(name: str) -> list[str]:
    return [instruction.text for instruction in FINAL if instruction.name == name]


def _which(program: str) -> str | None:
    return shutil.which(program, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def test_every_base_image_has_a_version() -> None:
    for stage in STAGES:
        image = stage[0].text.split(" ")[0]
        tag = image.partition(":")[2]
        assert re.match(r"\d", tag), f"{image} is not pinned to a version"


def test_no_address_of_a_registry_is_written_down() -> None:
    for name in ("Dockerfile", "docker-compose.yml", ".dockerignore"):
        assert not re.search(r"https?://(?!127\.0\.0\.1)", (ROOT / name).read_text()), name


def test_the_container_runs_as_a_fixed_user_that_is_not_root() -> None:
    (user,) = _final("USER")
    uid, _, gid = user.partition(":")
    assert int(uid) >= 1000
    assert int(gid) >= 1000
    assert f"--uid {uid}" in " ".join(_final("RUN"))
    last = max(i for i, instruction in enumerate(FINAL) if instruction.name in ("RUN", "COPY"))
    assert FINAL.index(next(i for i in FINAL if i.name == "USER")) > last, "USER stands before a RUN or COPY"


def test_the_command_and_the_health_check_are_files_of_the_image() -> None:
    (command,) = [i for i in FINAL if i.name == "CMD"]
    assert command.exec_form == ["relay", "serve"]
    (entry,) = [i for i in FINAL if i.name == "ENTRYPOINT"]
    assert entry.exec_form == ["/opt/lora-relay/start.sh"]
    assert "--chmod=0755 docker/start.sh /opt/lora-relay/start.sh" in _final("COPY")
    (check,) = _final("HEALTHCHECK")
    assert re.search(r'CMD \["python", "/opt/lora-relay/healthcheck\.py"\]$', check)
    assert "--chmod=0644 docker/healthcheck.py /opt/lora-relay/healthcheck.py" in _final("COPY")


def test_the_image_is_left_without_installers() -> None:
    runs = " ".join(_final("RUN"))
    assert "pip uninstall" in runs
    assert not re.search(r"pip install|apt-get|curl|wget|gcc", runs)


def test_the_labels_say_what_the_project_says() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'(org\.opencontainers\.image\.[\w.]+)="([^"]*)"', " ".join(_final("LABEL"))))
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.description"] == project["description"]
    assert labels["org.opencontainers.image.base.name"] == FINAL[0].text


def test_the_image_sets_only_settings_the_server_has_and_stores_on_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = image_environment()
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            assert name.removeprefix(ENVIRONMENT_PREFIX).lower() in Settings.model_fields, name
            monkeypatch.setenv(name, value)
    settings = load_settings({})
    assert settings.host == "0.0.0.0"
    assert [str(settings.port)] == _final("EXPOSE")
    (volume,) = _final("VOLUME")
    assert settings.store.is_relative_to(volume)
    assert settings.cache.is_relative_to(volume)
    assert Path(environment["HF_HOME"]).is_relative_to(volume)


def test_the_converted_base_is_where_the_server_looks_for_it() -> None:
    convert = next(i for i in STAGES[0] if "load_base" in i.text)
    workdir = [i.text for i in STAGES[0][: STAGES[0].index(convert)] if i.name == "WORKDIR"][-1]
    assert "cache=Path('cache')" in convert.text
    assert convert.text.endswith("&& chmod -R a+rX cache"), "the container's user could not read it"
    assert f"SHIPPED:-{workdir}/cache}}" in START.read_text()
    assert "build(Path('cache'), level)" in convert.text, "the compiled kernels would be missing"
    assert f"--from=build {workdir} {workdir}" in _final("COPY")


def test_a_start_links_what_the_image_brings_along_and_leaves_what_is_there(tmp_path: Path) -> None:
    shipped, cache = tmp_path / "shipped", tmp_path / "data" / "cache"
    for name in ("kernels/a.so", "converted/base/config.json", "converted/own/config.json"):
        (shipped / name).parent.mkdir(parents=True, exist_ok=True)
        (shipped / name).write_text("shipped")
    (cache / "converted" / "own").mkdir(parents=True)
    (cache / "converted" / "own" / "config.json").write_text("own")
    (cache / "kernels").mkdir()
    (cache / "kernels" / "a.so").symlink_to(tmp_path / "an-older-image")
    environment = {**os.environ, "SHIPPED": str(shipped), "RELAY_CACHE": str(cache)}
    for _ in range(2):  # a restart finds all of it there
        ran = subprocess.run([START, "echo", "two words"], env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout == "two words\n"
    found = {str(p.relative_to(cache)): p.read_text() for p in cache.rglob("*") if p.is_file()}
    assert found["kernels/a.so"] == "shipped"
    assert (cache / "converted" / "base" / "config.json").read_text() == "shipped"
    assert (cache / "converted" / "own" / "config.json").read_text() == "own"
    assert not list(shipped.rglob("own/own")), "a link in the folder that a link leads to"


def test_every_package_of_the_project_is_copied_and_nothing_else_gets_into_the_build() -> None:
    copied = [i.text for stage in STAGES for i in stage if i.name == "COPY" and "--from" not in i.text]
    words = [word for text in copied for word in text.split()[:-1] if not word.startswith("--")]
    sources = {word.rstrip("/") for word in words}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert sources == allowed
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {
        p.parent.name for p in ROOT.glob("*/__init__.py") if any(fnmatch.fnmatch(p.parent.name, f) for f in found)
    }
    assert packages <= sources


@contextmanager
def _answering(status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def _check_health(port: int) -> int:
    # A proxy that does not exist: the check must not ask it.
    environment = {"RELAY_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, "-S", HEALTHCHECK], env=environment, capture_output=True, timeout=30
    ).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_passes_on_the_servers_word(status: int, code: int) -> None:
    with _answering(status) as port:
        assert _check_health(port) == code


def test_the_health_check_fails_when_nobody_answers() -> None:
    with _answering(200) as port:
        pass
    assert _check_health(port) == 1


@pytest.mark.skipif(_which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_no_objection() -> None:
    done = subprocess.run([str(_which("hadolint")), ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
