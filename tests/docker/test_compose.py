"""The compose file: hardened services in a healthy order, and every name in it means the same elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.settings import ENVIRONMENT_PREFIX, Settings
from tests.docker.files import (
    ROOT,
    compose,
    dashboard_provider,
    datasource,
    dockerfile,
    image_environment,
    prometheus_config,
)

SERVICES: dict[str, dict[str, Any]] = compose()["services"]
EVERY_SERVICE = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))

# Fixed by the image: what they say is where the compose file maps its port and mounts its volume.
FIXED_IN_THE_IMAGE = {"host", "port", "store"}


def _compose_program() -> list[str] | None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (standalone := shutil.which("docker-compose", path=path)) is not None:
        return [standalone]
    docker = shutil.which("docker", path=path)
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode != 0:
        return None
    return [docker, "compose"]


def test_there_are_the_server_prometheus_and_grafana() -> None:
    assert set(SERVICES) == {"server", "prometheus", "grafana"}


@EVERY_SERVICE
def test_every_image_is_pinned(service: dict[str, Any]) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]


@EVERY_SERVICE
def test_every_service_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service


@EVERY_SERVICE
def test_ports_are_open_to_this_machine_alone_unless_the_caller_says_otherwise(service: dict[str, Any]) -> None:
    for port in service["ports"]:
        assert re.fullmatch(r"\$\{BIND_ADDRESS:-127\.0\.0\.1\}:\$\{[A-Z]+_PORT:-\d+\}:\d+", port), port


@EVERY_SERVICE
def test_every_mount_has_a_source(service: dict[str, Any]) -> None:
    for mount in service["volumes"]:
        source, _, rest = mount.partition(":")
        if source.startswith("."):
            assert (ROOT / source).exists(), source
            assert rest.endswith(":ro"), mount
        else:
            assert source in compose()["volumes"], source


@EVERY_SERVICE
def test_whatever_is_waited_for_has_a_health_check(service: dict[str, Any]) -> None:
    in_the_image = any(instruction.name == "HEALTHCHECK" for instruction in dockerfile()[-1])
    for name, wait in service.get("depends_on", {}).items():
        assert wait == {"condition": "service_started" if name == "server" else "service_healthy"}
        assert "healthcheck" in SERVICES[name] or ("build" in SERVICES[name] and in_the_image)


def test_a_long_first_start_of_the_server_keeps_nothing_from_starting() -> None:
    waits = [
        service["depends_on"]["server"] for service in SERVICES.values() if "server" in service.get("depends_on", {})
    ]
    assert waits == [{"condition": "service_started"}]


def test_every_setting_can_be_handed_to_the_container() -> None:
    handed = {name for name in SERVICES["server"]["environment"] if name.startswith(ENVIRONMENT_PREFIX)}
    expected = {ENVIRONMENT_PREFIX + name.upper() for name in set(Settings.model_fields) - FIXED_IN_THE_IMAGE}
    assert handed == expected


def test_what_the_image_sets_stays_set_unless_the_caller_says_otherwise() -> None:
    """Compose unsets a variable without a value in the container, also where the image has one."""
    image = image_environment()
    for name, value in SERVICES["server"]["environment"].items():
        assert value == (f"${{{name}:-{image[name]}}}" if name in image else None), name


def test_the_image_has_the_projects_version() -> None:
    label = next(i.text for i in dockerfile()[-1] if i.name == "LABEL")
    assert f'image.version="{SERVICES["server"]["image"].partition(":")[2]}"' in label


def test_build_arguments_are_those_of_the_dockerfile() -> None:
    declared = {i.text.partition("=")[0] for stage in dockerfile() for i in stage if i.name == "ARG"}
    assert set(SERVICES["server"]["build"]["args"]) == declared


def test_prometheus_scrapes_the_server_and_grafana_asks_prometheus() -> None:
    (job,) = prometheus_config()["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["static_configs"] == [{"targets": [f"server:{image_environment()['RELAY_PORT']}"]}]
    assert datasource()["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")
    assert datasource()["jsonData"]["timeInterval"] == prometheus_config()["global"]["scrape_interval"]


def test_grafana_finds_the_dashboard_and_lets_people_only_look() -> None:
    grafana = SERVICES["grafana"]
    folder = dashboard_provider()["options"]["path"]
    assert f"./docker/grafana/dashboards:{folder}:ro" in grafana["volumes"]
    environment = grafana["environment"]
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == folder
    assert (ROOT / "docker" / "grafana" / "dashboards" / home.name).is_file()
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


@pytest.mark.skipif(_compose_program() is None, reason="Docker Compose is not installed")
def test_docker_compose_accepts_the_file() -> None:
    program = _compose_program()
    assert program is not None
    done = subprocess.run(
        [*program, "-f", ROOT / "docker-compose.yml", "config", "--quiet"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
