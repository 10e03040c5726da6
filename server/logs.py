"""How log lines look, ours and the libraries'. Knows no requests; who logs what is decided where it happens."""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor


def configure_logging(level: str, line_format: Literal["console", "json"]) -> None:
    """Sends everything to standard error in one format. Call once, at the start of a command."""
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if line_format == "json" else "%H:%M:%S"),
    ]
    render = _renderer(line_format)
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render]
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _renderer(line_format: Literal["console", "json"]) -> list[Processor]:
    if line_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # Not rich's traceback: it prints local variables, and those hold users' prompts.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
