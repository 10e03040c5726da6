"""Where settings come from, which source wins, and what is refused."""

from pathlib import Path

import pytest

from server.errors import SettingsError
from server.settings import DEFAULT_URL, Settings, load_settings, server_url


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("RELAY_"):
            monkeypatch.delenv(name)


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "relay.toml"
    file.write_text('port = 1\nhost = "0.0.0.0"\nkv_memory = "2GiB"\n')
    monkeypatch.setenv("RELAY_PORT", "2")
    monkeypatch.setenv("RELAY_HOST", "::1")
    settings = load_settings({"port": "3"}, config=file)
    assert (settings.port, settings.host, settings.kv_memory, settings.max_queue) == (3, "::1", 2 << 30, 256)


def test_the_file_can_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("no_demo = true\n")
    monkeypatch.setenv("RELAY_CONFIG", str(file))
    assert load_settings({}).no_demo


def test_an_empty_variable_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_PORT", "")
    assert load_settings({}).port == 8000


def test_an_unknown_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_PROT", "1")
    with pytest.raises(SettingsError, match="RELAY_PROT"):
        load_settings({})


def test_the_clients_variable_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server_url(None) == DEFAULT_URL
    monkeypatch.setenv("RELAY_URL", "http://there:1/")
    load_settings({})
    assert server_url(None) == "http://there:1"
    assert server_url("http://here/") == "http://here"


def test_an_unknown_key_in_the_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text("prot = 1\n")
    with pytest.raises(SettingsError, match="prot"):
        load_settings({}, config=file)


@pytest.mark.parametrize("text", [None, "port = ", "\x00"])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "relay.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingsError, match=r"relay\.toml"):
        load_settings({}, config=file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("dtype", "fp8"),
        ("device", "tpu"),
        ("kv_memory", "lots"),
        ("kv_memory", "1KiB"),
        ("max_running", "0"),
        ("max_new_tokens", "-1"),
        ("log_level", "loud"),
    ],
)
def test_a_bad_value_names_its_flag_and_itself(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})
    assert "--" + name.replace("_", "-") in caught.value.message
    assert value in caught.value.message


def test_a_rank_that_no_slots_could_hold_is_an_error() -> None:
    with pytest.raises(SettingsError, match="expert_slots"):
        load_settings({"max_rank": 64, "expert_slots": 4})


def test_folders_may_begin_with_a_tilde() -> None:
    assert load_settings({"store": "~/experts"}).store == Path.home() / "experts"


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())
