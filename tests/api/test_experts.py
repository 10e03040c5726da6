"""The pool over HTTP: records, aliases, roll-back, deletion, chain order."""

from pathlib import Path

import pytest

from tests.api.conftest import App

pytestmark = pytest.mark.anyio


async def test_an_empty_pool_is_listed(world: App) -> None:
    assert (await world.ask("GET", "/experts")).json() == {"experts": [], "catalog_generation": 0}
    chain = (await world.ask("GET", "/chain")).json()
    assert chain == {"order": [], "members": [], "catalog_generation": 0}


async def test_the_record_says_what_an_expert_is_for(world: App, alora: Path, lora: Path) -> None:
    await world.register(alora, "sql")
    await world.register(lora, "plain", manifest="{}")
    listed = (await world.ask("GET", "/experts")).json()["experts"]
    assert [(e["name"], e["kind"], e["chain_position"]) for e in listed] == [
        ("plain", "lora", None),
        ("sql", "alora", 0),
    ]
    record = (await world.ask("GET", "/experts/sql")).json()
    assert record["description"] == "an expert for tests"
    assert record["samples"] == ["hello there"]
    assert record["aliases"] == {"live": 1}
    [version] = record["versions"]
    assert (version["version"], version["aliases"], version["self_selecting"]) == (1, ["live"], True)
    whole = (await world.ask("GET", "/experts/sql/versions/1")).json()
    assert whole["digest"] == version["digest"]
    assert set(whole["files"]) == {"adapter_config.json", "adapter_model.safetensors", "profile.safetensors"}
    assert whole["base_fingerprint"] == world.engine.base.spec.fingerprint


async def test_ship_and_roll_back(world: App, alora: Path) -> None:
    for _ in range(2):
        await world.register(alora, "sql")
    assert (await version_of(world, "sql")) == 2
    reply = await world.ask("PUT", "/experts/sql/aliases/live", {"version": 1})
    assert reply.json() == {"name": "sql", "alias": "live", "version": 1, "catalog_generation": 3}
    assert (await version_of(world, "sql")) == 1
    assert (await world.ask("PUT", "/experts/sql/aliases/canary", {"version": 2})).status == 200
    assert (await version_of(world, "sql@canary")) == 2
    reply = await world.ask("DELETE", "/experts/sql/aliases/canary")
    assert (reply.status, reply.json()["version"]) == (200, None)
    assert (await world.ask("POST", "/route", {"prompt": "x", "expert": "sql@canary"})).status == 404


async def test_a_version_an_alias_points_at_cannot_be_deleted(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    reply = await world.ask("DELETE", "/experts/sql/versions/1")
    assert (reply.status, reply.json()["error"]["code"]) == (409, "version_in_use")
    await world.register(alora, "sql")
    reply = await world.ask("DELETE", "/experts/sql/versions/1")
    assert reply.json() == {"catalog_generation": 3, "name": "sql", "version": 1}
    assert (await world.ask("GET", "/experts/sql/versions/1")).status == 404


async def test_a_deleted_expert_leaves_the_metrics(world: App, alora: Path) -> None:
    await world.register(alora, "sql")
    await world.ask("POST", "/generate", {"prompt": "do sql"})
    assert 'expert="sql"' in (await world.ask("GET", "/metrics")).body.decode()
    await world.ask("DELETE", "/experts/sql/aliases/live")
    await world.ask("DELETE", "/experts/sql/versions/1")
    assert 'expert="sql"' not in (await world.ask("GET", "/metrics")).body.decode()


async def test_the_chain_is_newest_first_and_can_be_ordered(world: App, alora: Path, lora: Path) -> None:
    for name in ("a", "b", "c"):
        await world.register(alora, name)
    await world.register(lora, "plain", manifest="{}")
    chain = (await world.ask("GET", "/chain")).json()
    assert chain["order"] == ["c", "b", "a"]
    assert chain["members"][0] == {
        "expert": "c",
        "version": 1,
        "kind": "alora",
        "gated": False,
        "guarded": False,
        "asked": True,
        "threshold": 0.5,
    }
    reply = await world.ask("PUT", "/chain", {"order": ["a", "c"], "generation": chain["catalog_generation"]})
    assert reply.json()["order"] == ["a", "c"]
    await world.ask("POST", "/route", {"prompt": "x"})
    assert world.engine.sessions[-1].scored == ["a@1", "c@1"]
    stale = await world.ask("PUT", "/chain", {"order": [], "generation": chain["catalog_generation"]})
    assert (stale.status, stale.json()["error"]["code"]) == (409, "generation_conflict")
    assert stale.json()["error"]["param"] == "generation"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("GET", "/experts/nobody", None, 404, "unknown_expert", "name"),
        ("GET", "/experts/No%20Body", None, 404, "unknown_expert", "name"),
        ("GET", "/experts/sql/versions/2", None, 404, "unknown_version", "version"),
        ("GET", "/experts/sql/versions/0", None, 422, "invalid_field", "version"),
        ("GET", "/experts/sql/versions/live", None, 422, "invalid_field", "version"),
        ("GET", "/experts/sql/versions/" + "9" * 5000, None, 422, "invalid_field", "version"),
        ("DELETE", "/experts/nobody/versions/1", None, 404, "unknown_expert", "name"),
        ("DELETE", "/experts/sql/versions/7", None, 404, "unknown_version", "version"),
        ("PUT", "/experts/nobody/aliases/live", {"version": 1}, 404, "unknown_expert", "name"),
        ("PUT", "/experts/sql/aliases/live", {"version": 9}, 404, "unknown_version", "version"),
        ("PUT", "/experts/sql/aliases/live", {"version": 0}, 422, "invalid_field", "version"),
        ("PUT", "/experts/sql/aliases/live", {"version": True}, 422, "invalid_field", "version"),
        ("PUT", "/experts/sql/aliases/live", {}, 422, "invalid_field", "version"),
        ("PUT", "/experts/sql/aliases/3", {"version": 1}, 422, "invalid_name", "alias"),
        ("PUT", "/experts/sql/aliases/Nope", {"version": 1}, 422, "invalid_name", "alias"),
        ("DELETE", "/experts/sql/aliases/none", None, 404, "unknown_alias", "alias"),
        ("PUT", "/chain", {"order": ["sql", "sql"]}, 422, "invalid_chain", "order"),
        ("PUT", "/chain", {"order": ["plain"]}, 422, "invalid_chain", "order"),
        ("PUT", "/chain", {"order": ["nobody"]}, 404, "unknown_expert", "order"),
        ("PUT", "/chain", {"order": "sql"}, 422, "invalid_field", "order"),
        ("PUT", "/chain", {"order": [], "colour": 1}, 422, "unknown_field", "colour"),
        ("PUT", "/chain", {}, 422, "invalid_field", "order"),
        ("PUT", "/fallback", {"expert": "nobody"}, 404, "unknown_expert", "expert"),
        ("PUT", "/fallback", {"expert": "No Body"}, 404, "unknown_expert", "expert"),
        ("PUT", "/fallback", {"expert": "sql@1"}, 422, "invalid_fallback", "expert"),
        ("PUT", "/fallback", {"expert": 1}, 422, "invalid_field", "expert"),
        ("PUT", "/fallback", {"expert": "x" * 161}, 422, "invalid_field", "expert"),
        ("PUT", "/fallback", {}, 422, "invalid_field", "expert"),
        ("PUT", "/fallback", {"expert": "sql", "version": 1}, 422, "unknown_field", "version"),
    ],
)
async def test_a_bad_change_is_refused_and_changes_nothing(
    world: App, alora: Path, lora: Path, method: str, path: str, body: object, status: int, code: str, param: str
) -> None:
    await world.register(alora, "sql")
    await world.register(lora, "plain", manifest="{}")
    reply = await world.ask(method, path, body)
    error = reply.json()["error"]
    assert (reply.status, error["code"], error["param"]) == (status, code, param), error
    assert world.store.catalog.generation == 2


async def version_of(world: App, ref: str) -> int:
    reply = await world.ask("POST", "/route", {"prompt": "x", "expert": ref})
    return int(reply.json()["routing"]["version"])
