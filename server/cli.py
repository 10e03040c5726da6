"""The `relay` command: flags to settings, a server to run, a server to ask. Knows no engine and no model.

Whatever takes long to import (torch, FastAPI, training) is imported by the command that needs it.
"""

import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from rich.console import Console, RenderableType

from expert_store import StoreError, verify_store
from server import client, show
from server.errors import RelayError
from server.settings import ENVIRONMENT_PREFIX, Settings, load_settings, server_url
from server.threads import leave_processors_to_engine, spin_briefly

app = typer.Typer(no_args_is_help=True, add_completion=False, help="LoRA Relay: experts that choose their requests.")
experts = typer.Typer(no_args_is_help=True, help="Look at experts, add, alias and delete them, verify the store.")
app.add_typer(experts, name="experts")
routers = typer.Typer(help="List a server's routers, or add a learned one.")
app.add_typer(routers, name="routers")

_PIPED_COLUMNS = 1000  # nobody looks at a page: digests and descriptions stay whole
_console = Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS)
_errors = Console(stderr=True)

Url = Annotated[str | None, typer.Option("--url", help="The server (RELAY_URL; default http://127.0.0.1:8000).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's answer as it came.")]
Store = Annotated[Path | None, typer.Option("--store", help="The store's folder (RELAY_STORE).")]


def _serve(config: Path | None, **flags: str | bool | None) -> None:
    with _clear_errors():
        settings = load_settings({name: v for name, v in flags.items() if v is not None}, config=config)
        threads = leave_processors_to_engine(settings.threads)
        from server.run import run_server

        run_server(settings.model_copy(update={"threads": threads}))


def _with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives the command one option a setting, so that flags, variables and documentation cannot drift apart."""
    config = typer.Option("--config", help="TOML file with settings (RELAY_CONFIG).")
    options = {"config": Annotated[Path | None, config]}
    options |= {name: _option(name, field) for name, field in Settings.model_fields.items()}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)
        for name, annotation in options.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = dict(options)
    return command


def _option(name: str, field: FieldInfo) -> Any:
    flag = "--" + name.replace("_", "-")
    default = field.get_default(call_default_factory=True)
    shown = "" if default is None or field.annotation is bool else f"; default {_human(default)}"
    text = f"{field.description} ({ENVIRONMENT_PREFIX}{name.upper()}{shown})"
    if field.annotation is bool:
        return Annotated[bool | None, typer.Option(flag, help=text)]
    return Annotated[str | None, typer.Option(flag, help=text, metavar=name.rpartition("_")[2].upper())]


def _human(default: object) -> str:
    return default.human_readable() if isinstance(default, ByteSize) else str(default)


app.command("serve", help="Start the server.")(_with_setting_flags(_serve))


@app.command()
def route(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    router: Annotated[str | None, typer.Option(help="chain, gradient, learned or none; else the server's.")] = None,
    shortlist: Annotated[int | None, typer.Option(help="Ask only so many experts; 0 asks all.")] = None,
    guard: Annotated[
        bool | None, typer.Option(help="Ask none whose guard says the prompt is not of its kind; else the server's.")
    ] = None,
    shadow: Annotated[list[str] | None, typer.Option(help="A router to score beside it; repeatable.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Ask who would answer a prompt."""
    with _clear_errors():
        answer = client.route(
            server_url(url), text, router=router, shortlist=shortlist, guard=guard, shadow=shadow or ()
        )
        _print(answer, show.decision, as_json=as_json)


@app.command()
def generate(
    text: Annotated[str, typer.Argument(help="The prompt.")],
    expert: Annotated[str | None, typer.Option(help="NAME, NAME@VERSION or NAME@ALIAS; else a router chooses.")] = None,
    router: Annotated[str | None, typer.Option(help="chain, gradient, learned or none; else the server's.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate; else 128.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the most likely token.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Ask for an answer: its text alone goes to the standard output, who gave it to the other."""
    with _clear_errors():
        answer = client.generate(
            server_url(url),
            text,
            expert=expert,
            router=router,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
        if as_json:
            _print(answer, show.decision, as_json=True)
            return
        typer.echo(answer["text"])  # as it is: rich would break its lines
        _say(show.answerer(answer), style="dim")


@app.command()
def chain(
    order: Annotated[list[str] | None, typer.Argument(help="Experts to ask; without any, show who is asked.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Ask nobody.")] = False,
    generation: Annotated[int | None, typer.Option(help="Only if the catalog is still at this one.")] = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Set or show whom the chain asks, first to last."""
    if order and none:
        raise typer.BadParameter("give names or --none, not both")
    if generation is not None and not (order or none):
        raise typer.BadParameter("--generation is for setting the chain: give names, or --none")
    with _clear_errors():
        server, changed = server_url(url), bool(order) or none
        answer = client.set_chain(server, order or (), generation) if changed else client.show_chain(server)
        _print(answer, show.chain, as_json=as_json)


@routers.callback(invoke_without_command=True)
def list_routers(context: typer.Context, url: Url = None, as_json: AsJson = False) -> None:
    """List the routers of a server: which are ready, and what the others lack."""
    if context.invoked_subcommand is not None:
        return
    with _clear_errors():
        _print(client.list_routers(server_url(url)), show.router_table, as_json=as_json)


@routers.command("add")
def add_router(
    folder: Annotated[Path, typer.Argument(help="What `relay train router` wrote.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Register a learned router on a running server; it is in use from the next request on."""
    with _clear_errors():
        _print(client.add_router(server_url(url), folder), show.router_registration, as_json=as_json)


@app.command()
def fallback(
    name: Annotated[str | None, typer.Argument(help="The expert to answer; without it, ask who does now.")] = None,
    none: Annotated[bool, typer.Option("--none", help="Let the base model answer.")] = False,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Set or show who answers where no expert accepts."""
    if name is not None and none:
        raise typer.BadParameter("give a name or --none, not both")
    with _clear_errors():
        changed = name is not None or none
        answer = client.set_fallback(server_url(url), name) if changed else client.show_fallback(server_url(url))
        _print(answer, show.fallback, as_json=as_json)


@experts.command("list")
def list_experts(url: Url = None, as_json: AsJson = False) -> None:
    """List the experts of a server."""
    with _clear_errors():
        _print(client.list_experts(server_url(url)), show.expert_table, as_json=as_json)


@experts.command("show")
def show_expert(name: str, url: Url = None, as_json: AsJson = False) -> None:
    """Show one expert: what it is for, its versions and aliases."""
    with _clear_errors():
        _print(client.show_expert(server_url(url), name), show.expert, as_json=as_json)


@experts.command("add")
def add_expert(
    folder: Annotated[Path, typer.Argument(help="What PEFT's save_pretrained or `relay train` wrote.")],
    name: Annotated[str | None, typer.Option(help="The expert's name; else the manifest's.")] = None,
    activate: Annotated[bool, typer.Option(help="Make it the version its bare name means.")] = True,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Register an adapter on a running server."""
    with _clear_errors():
        answer = client.add_expert(server_url(url), folder, name=name, activate=activate)
        _print(answer, show.registration, as_json=as_json)


@experts.command("alias")
def set_alias(
    name: str,
    alias: Annotated[str, typer.Argument(help="`live` is what the bare name means.")],
    version: int,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version: `live` to ship and to roll back."""
    with _clear_errors():
        _print(client.set_alias(server_url(url), name, alias, version), show.alias, as_json=as_json)


@experts.command("unalias")
def remove_alias(name: str, alias: str, url: Url = None, as_json: AsJson = False) -> None:
    """Remove an alias; without `live` the chain passes the expert by."""
    with _clear_errors():
        _print(client.remove_alias(server_url(url), name, alias), show.alias, as_json=as_json)


@experts.command("delete")
def delete_version(name: str, version: int, url: Url = None, as_json: AsJson = False) -> None:
    """Take a version that no alias points at out of the pool."""
    with _clear_errors():
        _print(client.delete_version(server_url(url), name, version), show.deletion, as_json=as_json)


@experts.command("verify")
def verify(store: Store = None) -> None:
    """Check every file of a store against its digest; no server is needed."""
    with _clear_errors():
        root = load_settings({} if store is None else {"store": store}).store
        if not root.is_dir():
            raise client.ClientError(f"{root} is not there: name the store's folder with --store or RELAY_STORE")
        found = verify_store(root, say=_say)
    if found:
        _console.print(show.problems(found))
        raise typer.Exit(1)
    _console.print(f"{root}: every file is as published", highlight=False)


@app.command(
    "train",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
def train(context: typer.Context) -> None:
    """Train experts."""
    spin_briefly()
    from training.commands import app as training

    training(args=context.args, prog_name="relay train")


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What a user can mend becomes one message and exit status 1."""
    try:
        yield
    except (RelayError, StoreError) as error:
        _say(error.message, style="red")
        raise typer.Exit(1) from error
    except BrokenPipeError:  # whoever reads the output has enough: typer ends the command without a word
        raise
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        _say(f"{where}{error.strerror or error}", style="red")
        raise typer.Exit(1) from error


def _say(message: str, style: str | None = None) -> None:
    """One line beside the output proper."""
    _errors.print(message, style=style, markup=False, highlight=False, soft_wrap=True)


def _print(answer: dict[str, Any], table: Callable[[Mapping[str, Any]], RenderableType], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _console.print(table(answer))
