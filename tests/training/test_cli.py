"""`relay train see` and `relay train gate` as a user meets them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.model.base import load_base
from server.model.chat import ChatFormat
from server.settings import CONFIG_VARIABLE
from tests.support.tiny import write_adapter, write_base
from training.commands import app, default_cache


def write_rows(path: Path, prefix: str, count: int) -> Path:
    lines = [json.dumps({"id": i, "input": f"{prefix} {i}", "output": f"{i} dogs"}) for i in range(count)]
    path.write_text("\n".join(lines))
    return path


def see(folder: Path, *options: str) -> Result:
    base = folder / "base"
    if not base.exists():
        write_base(base)
    command = ["see", "--data", folder / "own.jsonl", "--negatives", folder / "a.jsonl", folder / "b.jsonl"]
    more = ["--out", folder / "out", "--base", base, "--device", "cpu", "--cache", folder, *options]
    return CliRunner().invoke(app, [str(part) for part in (*command, *more)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "own.jsonl", "jump", 12)
    write_rows(tmp_path / "a.jsonl", "lazy", 6)
    write_rows(tmp_path / "b.jsonl", "brown", 6)
    return tmp_path


def test_an_expert_is_trained_and_reported(folder: Path) -> None:
    result = see(folder, "--rank", "4", "--batch-size", "4", "--sample", "jump 3", "--description", "Counts dogs.")
    assert result.exit_code == 0, result.output
    assert "threshold" in result.output
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["training"]["rows"] == 22
    assert manifest["samples"] == ["jump 3"]
    assert manifest["name"] is None


def test_bad_data_is_named_by_line_and_nothing_is_trained(folder: Path) -> None:
    (folder / "b.jsonl").write_text('{"id": 1, "input": "x"}\n{"id": 1, "input": "y"}\n')
    result = see(folder)
    assert result.exit_code == 1
    assert "line 2: id '1' is already used in line 1" in result.output
    assert not (folder / "out").exists()


def test_base_device_and_template_are_the_servers_where_nothing_else_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, template = write_base(folder / "other"), folder / "template.jinja"
    text = "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}=>{% endif %}"
    template.write_text(text)
    config = folder / "relay.toml"
    lines = {"base": base, "device": "cpu", "cache": folder, "chat_template": template}
    config.write_text("\n".join(f'{name} = "{value}"' for name, value in lines.items()))
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    command = ["see", "--data", folder / "own.jsonl", "--negatives", folder / "a.jsonl", "--out", folder / "out"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    loaded = load_base(str(base), device="cpu", cache=folder)
    chat = ChatFormat(loaded.tokenizer, template=text)
    written = json.loads((folder / "out" / "adapter_config.json").read_text())
    assert written["alora_invocation_tokens"] == list(chat.generation_prompt)
    assert chat.generation_prompt != ChatFormat(loaded.tokenizer).generation_prompt
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert manifest["base_fingerprint"] == loaded.spec.fingerprint


def test_a_folder_that_cannot_be_made_is_told_in_one_line(folder: Path) -> None:
    (folder / "out").write_text("a file is in the way")
    result = see(folder)
    assert result.exit_code == 1
    assert str(folder / "out") in result.output.replace("\n", "")
    assert "Traceback" not in result.output


def test_a_bad_name_is_refused_before_the_training(folder: Path) -> None:
    result = see(folder, "--register", "No Name")
    assert result.exit_code == 1
    assert "'No Name' is no expert name" in result.output
    assert not (folder / "out").exists()


def test_a_server_that_is_not_there_leaves_the_expert_saved(folder: Path) -> None:
    result = see(folder, "--rank", "2", "--register", "fox", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "no server answers at http://127.0.0.1:9" in result.output
    assert (folder / "out" / "manifest.json").exists()


def gate(folder: Path, *options: str) -> Result:
    base = folder / "base"
    if not base.exists():
        write_base(base)
        write_adapter(folder / "plain", base, kind="lora", targets=["v_proj"])
    (folder / "inputs.jsonl").write_text("\n".join(json.dumps({"id": i, "input": f"jump {i}"}) for i in range(12)))
    command = ["gate", "--expert", folder / "plain", "--data", folder / "inputs.jsonl", "--negatives"]
    files = [folder / "a.jsonl", folder / "b.jsonl", "--out", folder / "out"]
    more = ["--base", base, "--device", "cpu", "--cache", folder, *options]
    return CliRunner().invoke(app, [str(part) for part in (*command, *files, *more)])


def test_a_gate_is_trained_from_inputs_alone_and_reported(folder: Path) -> None:
    result = gate(folder, "--batch-size", "4", "--rank", "2", "--description", "Counts dogs.")
    assert result.exit_code == 0, result.output
    assert "threshold" in result.output
    assert "exactly" not in result.output
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    assert (manifest["training"]["recipe"], manifest["training"]["rows"]) == ("gate", 22)
    assert manifest["description"] == "Counts dogs."
    assert (folder / "out" / "gate" / "adapter_model.safetensors").is_file()


def test_a_gate_for_nothing_is_refused_before_the_base_is_loaded(folder: Path) -> None:
    result = gate(folder, "--expert", str(folder / "nowhere"))
    assert result.exit_code == 1
    assert "--expert must hold what PEFT's save_pretrained writes" in " ".join(result.output.split())
    assert not (folder / "out").exists()


def elrea(folder: Path, *options: str) -> Result:
    base = folder / "base"
    if not base.exists():
        write_base(base)
    rows = [
        {"id": i, "input": f"{('the lazy dog', '0123 3210')[i % 2]} {i}", "output": ("fox", "9")[i % 2]}
        for i in range(12)
    ]
    (folder / "mixed.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    command = ["elrea", "--data", folder / "mixed.jsonl", "--out", folder / "out", "--base", base, "--cache", folder]
    more = ["--device", "cpu", "--rank", "2", "--batch-size", "6", "--clusters", "2", "--width", "256", *options]
    return CliRunner().invoke(app, [str(part) for part in (*command, *more)])


def test_a_pool_is_trained_and_reported_and_kept_where_no_server_is(folder: Path) -> None:
    result = elrea(folder, "--register", "mix", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "a base adapter and 2 experts of 6, 6 rows" in " ".join(result.output.split())
    assert "no server answers at http://127.0.0.1:9" in result.output
    for name in ("base", "expert-0", "expert-1"):
        manifest = json.loads((folder / "out" / name / "manifest.json").read_text())
        assert manifest["name"] == f"mix-{name.removeprefix('expert-')}"
    assert elrea(folder, "--clusters", "2").exit_code == 1  # without --resume nothing is taken for one's own
    assert elrea(folder, "--resume").exit_code == 0


def test_a_pool_is_not_trained_from_bad_rows_or_under_a_bad_name(folder: Path) -> None:
    refused = elrea(folder, "--register", "No Name")
    assert (refused.exit_code, "is no expert name" in refused.output) == (1, True)
    refused = elrea(folder, "--max-tokens", "16")
    assert (refused.exit_code, "line 1: " in refused.output) == (1, True)
    assert not (folder / "out").exists()


def test_what_the_server_keeps_where_its_config_file_says_is_looked_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(f'cache = "{tmp_path}/cache"\nstore = "{tmp_path}/store"\n')
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))
    assert default_cache() == tmp_path / "cache"
    (tmp_path / "memory.jsonl").write_text("{}")
    command = ["router", "--memory", tmp_path / "memory.jsonl", "--out", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 1
    assert f"{tmp_path}/store" in result.output
