"""The deployment's files, parsed. Knows where they are and their syntax; judges nothing."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "docker" / "grafana"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, its continuation lines joined by a blank."""

    name: str
    text: str

    @property
    def exec_form(self) -> list[str] | None:
        """The words of a JSON array, None when it is a shell's line."""
        if not self.text.startswith("["):
            return None
        words = json.loads(self.text)
        assert isinstance(words, list)
        return words


def dockerfile() -> list[list[Instruction]]:
    """The build's stages in order, each beginning with its FROM."""
    stages: list[list[Instruction]] = []
    for line in _logical_lines((ROOT / "Dockerfile").read_text()):
        name, _, text = line.partition(" ")
        instruction = Instruction(name, text.strip())
        if name == "FROM":
            stages.append([])
        stages[-1].append(instruction)
    return stages


def image_environment() -> dict[str, str]:
    """What the final stage's ENV sets."""
    lines = [i.text for i in dockerfile()[-1] if i.name == "ENV"]
    return {name: value.strip('"') for name, value in re.findall(r"(\w+)=(\"[^\"]*\"|\S+)", " ".join(lines))}


def compose() -> dict[str, Any]:
    return _mapping(ROOT / "docker-compose.yml")


def prometheus_config() -> dict[str, Any]:
    return _mapping(ROOT / "docker" / "prometheus.yml")


def datasource() -> dict[str, Any]:
    """The one data source that Grafana is provisioned with."""
    (source,) = _mapping(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert isinstance(source, dict)
    return source


def dashboard_provider() -> dict[str, Any]:
    (provider,) = _mapping(GRAFANA / "provisioning" / "dashboards" / "lora-relay.yml")["providers"]
    assert isinstance(provider, dict)
    return provider


def dashboard() -> dict[str, Any]:
    parsed = json.loads((GRAFANA / "dashboards" / "overview.json").read_text())
    assert isinstance(parsed, dict)
    return parsed


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels without the row headings."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def _mapping(file: Path) -> dict[str, Any]:
    parsed = yaml.safe_load(file.read_text())
    assert isinstance(parsed, dict)
    return parsed


def _logical_lines(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return joined.splitlines()
