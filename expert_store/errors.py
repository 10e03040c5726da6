"""What can go wrong in the store, as exceptions. Knows no HTTP, no files and no tensors.

StoreError                      `message`, and `field`: the input at fault, where one is
├── InvalidAdapter              PEFT's two files are damaged, dangerous, or not servable on this base
├── InvalidManifest             what was said about the adapter does not hold
├── InvalidRouter               a learned router that could not decide on this base or pool
├── InvalidName                 an expert or alias name outside the pattern
├── InvalidChain                a chain order that repeats a name or holds one that cannot choose
├── InvalidFallback             somebody who could not answer in the base model's place
├── UnknownExpert
├── UnknownVersion
├── UnknownAlias
├── VersionInUse                an alias still points at the version
├── GenerationConflict          somebody changed the catalog first
├── StoreBusy                   another process kept the store locked for too long
└── CorruptStore                what lies on disk is not what was published
"""

from collections.abc import Sequence
from pathlib import Path

_SHOWN_CHARS = 80
_SHOWN_VERSIONS = 10


class StoreError(Exception):
    """Root of the tree."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidAdapter(StoreError):
    """The adapter is refused; `field` is a key of adapter_config.json or the name of a file."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, field=field)


class InvalidManifest(StoreError):
    """The manifest is refused; `field` is its dotted path, or None when the whole text is not JSON."""

    def __init__(self, field: str | None, message: str) -> None:
        super().__init__(message, field=field)


class InvalidRouter(StoreError):
    """The learned router is refused; `field` is a key of its manifest or the name of its file."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, field=field)


class InvalidName(StoreError):
    """A name of an expert or an alias is outside the pattern."""

    def __init__(self, value: str, *, field: str = "name") -> None:
        what = "alias" if field == "alias" else "expert name"
        not_a_number = ", and not a plain number" if field == "alias" else ""
        super().__init__(
            f"{shown(value)} is no {what}: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            f"beginning with a letter or digit{not_a_number}",
            field=field,
        )


class InvalidChain(StoreError):
    """The order holds a name twice, or an expert that has no indicators to accept and reject with."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="order")


class InvalidFallback(StoreError):
    """The fallback is a version instead of a name, or a name without a live version."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="expert")


class UnknownExpert(StoreError):
    """No version of that name is in the catalog."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no expert {shown(name)}: use a name of the catalog, or register it", field="name")
        self.name = name


class UnknownVersion(StoreError):
    """The expert exists, the version does not (or no longer)."""

    def __init__(self, name: str, version: int | str, known: Sequence[int] = ()) -> None:
        super().__init__(
            f"expert {shown(name)} has no version {shown(str(version))}: {_listed(known)}", field="version"
        )
        self.name = name
        self.version = version


class UnknownAlias(StoreError):
    """The expert exists, the alias does not. A bare name means the alias `live`."""

    def __init__(self, name: str, alias: str) -> None:
        super().__init__(
            f"expert {shown(name)} has no alias {shown(alias)}: point it at a version, or name a version",
            field="alias",
        )
        self.name = name
        self.alias = alias


class VersionInUse(StoreError):
    """Versions are deleted only when nothing points at them."""

    def __init__(self, name: str, version: int, aliases: Sequence[str]) -> None:
        super().__init__(
            f"{name}@{version} is what {', '.join(repr(a) for a in aliases)} points at: move or remove the alias first",
            field="version",
        )
        self.name = name
        self.version = version
        self.aliases = tuple(aliases)


class GenerationConflict(StoreError):
    """The caller decided on a catalog that is no longer the current one."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(
            f"the catalog is at generation {actual}, not {expected}: read it again and repeat the change",
            field="expected_generation",
        )
        self.expected = expected
        self.actual = actual


class StoreBusy(StoreError):
    """The lock was not to be had in time."""

    def __init__(self, path: Path, waited_seconds: float) -> None:
        super().__init__(
            f"{path} was held by another process for {waited_seconds:g} s: try again, "
            "or look for a process that hangs while writing to this store"
        )


class CorruptStore(StoreError):
    """Raised instead of guessing; nothing on disk has been changed."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


def shown(value: str) -> str:
    """`value` quoted for a message, cut when a caller sent a novel."""
    return repr(value if len(value) <= _SHOWN_CHARS else value[:_SHOWN_CHARS] + "...")


def _listed(known: Sequence[int]) -> str:
    if not known:
        return "list the expert for its versions"
    newest = sorted(known)[-_SHOWN_VERSIONS:]
    return f"it has {'..., ' if len(newest) < len(known) else ''}{', '.join(map(str, newest))}"
