"""The documentation names every route, setting, metric and error, and names no others."""

import json
import re
from pathlib import Path

import pytest
from pydantic import ByteSize

from expert_store import Catalog
from server.api.errors import error_codes
from server.api.openai_schemas import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from server.api.request_schemas import GenerateRequest
from server.app import build_app
from server.metrics import Metrics
from server.settings import CONFIG_VARIABLE, URL_VARIABLE, Settings

DOCS = Path(__file__).parent.parent / "docs"


def read(name: str) -> str:
    return (DOCS / name).read_text()


def first_column(text: str) -> list[str]:
    """What stands between backticks at the start of table rows."""
    return re.findall(r"^\| `([^`]+)`", text, flags=re.MULTILINE)


def test_every_route_is_documented_and_no_other(tmp_path: Path) -> None:
    app = build_app(Settings(base="unused", store=tmp_path))
    served = {f"{m.upper()} {path}" for path, operations in app.openapi()["paths"].items() for m in operations}
    documented = {row for row in first_column(read("api.md")) if row.split()[0].isupper()}
    assert documented == served


def test_every_field_of_a_generate_request_is_documented() -> None:
    assert set(GenerateRequest.model_fields) <= set(first_column(read("api.md")))


@pytest.mark.parametrize("body", [CompletionRequest, ChatCompletionRequest])
def test_every_field_of_a_completion_request_is_documented(body: type[OpenAIRequest]) -> None:
    section = read("api.md").partition("\n## OpenAI")[2].partition("\n## ")[0]
    assert set(body.model_fields) <= set(re.findall(r"`(\w+)`", section))


def test_every_setting_is_documented_with_its_variable_and_default() -> None:
    rows = [line.split(" | ") for line in read("configuration.md").splitlines() if line.startswith("| `--")]
    documented = {row[0].removeprefix("| "): (row[1], row[2], row[3].removesuffix(" |")) for row in rows}
    for name, field in Settings.model_fields.items():
        variable, default, description = documented.pop(f"`--{name.replace('_', '-')}`")
        assert variable == f"`RELAY_{name.upper()}`"
        assert description == field.description
        if name not in ("store", "cache"):
            assert default == shown(field.get_default())
    assert documented == {}
    assert CONFIG_VARIABLE in read("configuration.md")
    assert URL_VARIABLE in read("configuration.md")


def shown(default: object) -> str:
    if default is None:
        return "none"
    text = default.human_readable() if isinstance(default, ByteSize) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`"


def test_every_metric_is_documented_with_its_type_and_labels_and_no_other() -> None:
    metrics = Metrics(catalog=Catalog, max_experts=1)
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| ([^|]*)\|", read("metrics.md"), flags=re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`([^`]+)`", labels))) for name, kind, labels in rows}
    declared = {}
    for collector in [c for c in metrics.registry._collector_to_names if hasattr(c, "_labelnames")]:
        suffix = "_total" if collector._type == "counter" else ""
        declared[collector._name + suffix] = (collector._type, tuple(collector._labelnames))
    vllm = ("gauge", ("max_lora", "running_lora_adapters", "waiting_lora_adapters"))
    assert documented == declared | {"vllm:lora_requests_info": vllm}


def test_every_error_code_is_documented_and_no_other() -> None:
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \|", read("errors.md"), flags=re.MULTILINE)
    assert {code for _, code in rows} == error_codes()


@pytest.mark.parametrize("name", ["api.md", "errors.md"])
def test_every_whole_json_example_is_json(name: str) -> None:
    blocks = re.findall(r"```json\n(.*?)```", read(name), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        json.loads(re.sub(r",\s*\.\.\.", "", re.sub(r": \.\.\.", ": null", block)))


def test_links_lead_somewhere() -> None:
    for page in ("api.md", "errors.md", "metrics.md", "configuration.md", "benchmarks.md"):
        for target in re.findall(r"\]\(([^)#]+)", read(page)):
            assert (DOCS / target).exists() or target.startswith("http"), (page, target)


def test_every_benchmark_is_documented_and_no_other() -> None:
    folder = DOCS.parent / "benchmarks"
    commands = [path.stem for path in folder.glob("*.py") if "\ndef main(" in path.read_text()]
    commands += [path.parent.name for path in folder.glob("*/__main__.py")]
    documented = [row.split()[2] for row in first_column(read("benchmarks.md")) if row.startswith("python -m ")]
    assert sorted(documented) == sorted(f"benchmarks.{name}" for name in commands)
