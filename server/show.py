"""Server answers as tables for a terminal. Asks nobody."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from expert_store import Problem


def decision(answer: Mapping[str, Any]) -> RenderableType:
    """Who would answer, why, and who was asked."""
    routing, usage, timings = answer["routing"], answer["usage"], answer["timings"]
    who = _who(routing)
    why = f"{routing['reason']}, as fallback" if routing["fallback"] and routing["expert"] else routing["reason"]
    line = Text.assemble((who, "bold"), f"  {why}")
    if routing["score"] is not None:
        line.append(f"  score {routing['score']:.4f}")
    cost = (
        f"{usage['prompt_tokens']} prompt tokens, {usage['computed_tokens']} computed, "
        f"{timings['routing_ms']:.0f} ms of routing"
    )
    parts: list[RenderableType] = [line]
    if routing["shortlist"] is not None:
        parts.append(_shortlist(routing["shortlist"]))
    if routing["considered"]:
        parts.append(_considered(routing["considered"]))
    parts += [_shadow(shadow) for shadow in routing["shadow"]]
    return Group(*parts, Text(cost, style="dim"))


def _who(routing: Mapping[str, Any]) -> str:
    """One expert, or a mixture as "0.62 sql@1 + 0.38 dates@2"."""
    if routing["expert"]:
        return f"{routing['expert']}@{routing['version']}"
    mixed = [f"{share['weight']:.2f} {share['expert']}@{share['version']}" for share in routing["experts"]]
    return " + ".join(mixed) or "the base model"


def _shadow(shadow: Mapping[str, Any]) -> Text:
    if shadow["problem"] is not None:
        return Text(f"shadow {shadow['router']}: {shadow['problem']}")
    agreed = "agrees" if shadow["agreed"] else "disagrees"
    return Text(f"shadow {shadow['router']} {agreed}: {_who(shadow)}, {shadow['ms']:.0f} ms")


def router_table(answer: Mapping[str, Any]) -> RenderableType:
    """One line a router."""
    table = _table("router", "ready", "version", "missing", "run")
    for router in answer["routers"]:
        name = f"{router['router']} (default)" if router["router"] == answer["default"] else router["router"]
        pending = [f"{router['pending']} centroids, which are being made"] if router["pending"] else []
        said = dict.fromkeys([*router["missing"], *router["problems"], *pending])
        missing, run = "; ".join(said) or "-", _or_dash(router["run"])
        _add_row(table, name, "yes" if router["ready"] else "no", _or_dash(router["version"]), missing, run)
    return table


def answerer(answer: Mapping[str, Any]) -> str:
    """Who gave an answer, why, and what it took."""
    routing, usage = answer["routing"], answer["usage"]
    cost = f"{usage['completion_tokens']} tokens, {answer['timings']['total_ms']:.0f} ms"
    return f"{_who(routing)}, {routing['reason']}, {answer['finish_reason']}; {cost}"


def alias(answer: Mapping[str, Any]) -> RenderableType:
    """Where an alias points now."""
    named = f"{answer['name']}@{answer['alias']}"
    return Text(f"{named} is gone" if answer["version"] is None else f"{named} is version {answer['version']}")


def deletion(answer: Mapping[str, Any]) -> RenderableType:
    """Which version is gone."""
    return Text(f"{answer['name']}@{answer['version']} is gone; requests that run on it finish with it")


def chain(answer: Mapping[str, Any]) -> RenderableType:
    """Who is asked, first to last, and who is passed by."""
    asked = ", ".join(member["expert"] for member in answer["members"] if member["asked"]) or "nobody"
    passed_by = ", ".join(member["expert"] for member in answer["members"] if not member["asked"])
    besides = f"; passed by, without a live version that can choose: {passed_by}" if passed_by else ""
    return Text(f"asked, first to last: {asked}{besides} (catalog generation {answer['catalog_generation']})")


def fallback(answer: Mapping[str, Any]) -> RenderableType:
    """Who answers where nobody accepts."""
    if answer["expert"] is None:
        return Text("where nobody accepts, the base model answers")
    if answer["version"] is None:
        return Text(
            f"where nobody accepts, {answer['expert']} is to answer, but has no live version: the base model does"
        )
    return Text(f"where nobody accepts, {answer['expert']}@{answer['version']} answers")


def expert_table(answer: Mapping[str, Any]) -> RenderableType:
    """One line an expert."""
    table = _table("expert", "live", "kind", "chain", "description")
    for expert in answer["experts"]:
        position = expert["chain_position"]
        _add_row(
            table,
            expert["name"],
            _or_dash(expert["live_version"]),
            _kind(expert),
            "-" if position is None else str(position + 1),
            expert["description"],
        )
    return Group(table, Text(f"catalog generation {answer['catalog_generation']}", style="dim"))


def expert(answer: Mapping[str, Any]) -> RenderableType:
    """All of one expert."""
    return Group(*_expert_parts(answer))


def registration(answer: Mapping[str, Any]) -> RenderableType:
    """What was published and what was checked before."""
    ref = f"{answer['name']}@{answer['version']}"
    head = Text.assemble((ref, "bold"), f"  {answer['kind']}, rank {answer['rank']}, {answer['digest']}")
    return Group(head, *_checks(answer))


def router_registration(answer: Mapping[str, Any]) -> RenderableType:
    """The same of a learned router."""
    head = Text.assemble(
        (f"{answer['router']}, version {answer['version']}", "bold"), f"  over {', '.join(answer['experts'])}"
    )
    return Group(head, *_checks(answer))


def _checks(answer: Mapping[str, Any]) -> Iterator[Text]:
    return (Text(f"  {check['name']}: {check['detail']}") for check in answer["checks"])


def problems(found: Sequence[Problem]) -> RenderableType:
    """One line each."""
    table = _table("version", "path", "problem")
    for problem in found:
        _add_row(table, _or_dash(problem.ref), str(problem.path), problem.message)
    return table


def _expert_parts(answer: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text.assemble((answer["name"], "bold"), f"  {answer['description']}")
    for sample in answer["samples"]:
        yield Text(f"  for example: {sample}")
    table = _table("version", "kind", "rank", "aliases", "created", "digest")
    for version in answer["versions"]:
        _add_row(
            table,
            str(version["version"]),
            _kind(version),
            str(version["rank"]),
            ", ".join(version["aliases"]) or "-",
            version["created_at"],
            version["digest"],
        )
    yield table


def _shortlist(shortlist: Mapping[str, Any]) -> Text:
    chosen, without, far = (shortlist[key] for key in ("proposed", "unprofiled", "left_out"))
    beside = f" and {without} without a profile" if without else ""
    unlike = f", {shortlist['unfamiliar']} left out by their guards" if shortlist.get("unfamiliar") else ""
    nearest = f"{chosen} by their profiles" if shortlist["size"] else f"{chosen} with a profile"
    return Text(f"shortlist: {nearest}{beside}{unlike}, {far} left out, {shortlist['ms']:.1f} ms")


def _considered(experts: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("asked", "score", "says")
    for asked in experts:
        score = "-" if asked["score"] is None else f"{asked['score']:.4f}"
        says = asked.get("problem") or ("mine" if asked["accepted"] else "not mine")
        _add_row(table, f"{asked['expert']}@{asked['version']}", score, says)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _add_row(table: Table, *cells: str) -> None:
    """Cells as they are: descriptions come from users and may look like rich's markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _kind(described: Mapping[str, Any]) -> str:
    return f"{described['kind']}, gated" if described["gated"] else _or_dash(described["kind"])


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
