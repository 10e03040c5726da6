"""What a PromQL expression names, and Grafana's variables filled in. Knows the words, not their meaning."""

import re
from dataclasses import dataclass

_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_MATCHERS = re.compile(r"\{([^}]*)\}")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORD = re.compile(r"[a-zA-Z_:][\w:]*")
_NOT_CALLED = re.compile(r"(?<![\w:$])([a-zA-Z_:][\w:]*)(?![\w:])(?!\s*\()")


@dataclass(frozen=True)
class Names:
    """Metrics an expression reads; labels by which it selects or groups."""

    metrics: frozenset[str]
    labels: frozenset[str]


def names(expression: str) -> Names:
    text = _RANGE.sub("", _STRING.sub("", expression))
    labels = [word for part in (*_MATCHERS.findall(text), *_GROUPING.findall(text)) for word in _WORD.findall(part)]
    text = _GROUPING.sub("", _MATCHERS.sub("", text))
    return Names(frozenset(_NOT_CALLED.findall(text)) - _KEYWORDS, frozenset(labels))


def fill_variables(expression: str, *, rate_interval: str, range_: str) -> str:
    """The expression as Grafana would send it with every expert selected."""
    filled = expression.replace("$__rate_interval", rate_interval).replace("$__range", range_)
    filled = filled.replace("$expert", ".*")
    assert "$" not in filled, f"a variable that the dashboard does not have: {filled}"
    return filled
