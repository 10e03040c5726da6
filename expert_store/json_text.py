"""JSON from strangers, read strictly: one object, no key twice, no NaN. Knows nothing of what the object means."""

import json
from collections import Counter
from typing import Any, NoReturn

from expert_store.errors import InvalidAdapter, shown


def parse_object(data: bytes, source: str) -> dict[str, Any]:
    """Raises InvalidAdapter for `source`, the file the text stands in."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidAdapter(source, f"{source}: the JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidAdapter(source, f"{source}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidAdapter(source, f"{source}: must hold a JSON object, not {type(value).__name__}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
