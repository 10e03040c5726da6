"""Regular expressions from strangers: PEFT's configs hold some. Refuses any that could keep the process busy."""

import re

from expert_store.errors import InvalidAdapter, shown

MAX_PATTERN_CHARS = 256
MAX_BRANCHES = 8192
_WILDCARD = r"(?:\.|\\[dw]|\[[\w.-]+\])[*+]\??"
_PLAIN = r"\\[dw.]|\[[\w.-]+\]|\(\?:|[\w.^$|()-]"
_ALLOWED = re.compile(rf"(?:{_WILDCARD}|{_PLAIN})+", re.ASCII)
_WILDCARDS = re.compile(_WILDCARD, re.ASCII)
_WILDCARD_BRANCHES = 64


def branches(pattern: str) -> int:
    """An upper estimate of the ways a match of a module name may be tried: each wildcard and each `|` multiplies."""
    return int(_WILDCARD_BRANCHES ** len(_WILDCARDS.findall(pattern)) * 2 ** pattern.count("|"))


def compile_patterns(field: str, patterns: list[str], template: str = "{}") -> list[re.Pattern[str]]:
    """Compiles `patterns`, each put into `template`. Raises InvalidAdapter for `field`.

    Allowed are names, `.`, `^`, `$`, groups, `|`, classes, and `*` or `+` after a single character, not after a group:
    nothing nests, so the branches multiply to a number that can be bounded beforehand.
    """
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN_CHARS or not _ALLOWED.fullmatch(pattern):
            raise _refused(field, pattern)
    if sum(map(branches, patterns)) > MAX_BRANCHES:
        raise _refused(field, max(patterns, key=branches))
    try:
        return [re.compile(template.format(pattern)) for pattern in patterns]
    except re.error as error:
        raise InvalidAdapter(field, f"{field}: not a regular expression: {error}") from None


def _refused(field: str, pattern: str) -> InvalidAdapter:
    return InvalidAdapter(
        field, f"{field}: the pattern {shown(pattern)} could take too long to match: write the module names out"
    )
