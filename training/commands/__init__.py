"""`relay train ...`: one module a recipe, from options to what it wrote and where that went. Knows no training."""

import typer

from training.commands.elrea import elrea
from training.commands.gate import gate
from training.commands.router import router
from training.commands.running import default_cache
from training.commands.see import see
from training.commands.sfa import sfa

__all__ = ["app", "default_cache"]

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train experts.")
for _command in (see, gate, sfa, elrea, router):
    app.command()(_command)
