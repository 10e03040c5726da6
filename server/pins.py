"""Keeps the files of deleted versions until the last request that may read them ends. Knows no disk and no HTTP."""

from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from expert_store import ExpertVersion


class Pins:
    """Counts, per version, the running requests that may still read its files. Lives on the event loop's thread.

    `discard` is called once for each deleted version, as soon as nobody holds it.
    """

    def __init__(self, discard: Callable[[ExpertVersion], None]) -> None:
        self._discard = discard
        self._holders: Counter[str] = Counter()
        self._deleted: dict[str, ExpertVersion] = {}

    def hold(self, versions: Iterable[ExpertVersion]) -> "Hold":
        """A request's claim on versions."""
        return Hold(self, versions)

    def delete(self, version: ExpertVersion) -> None:
        """The version has left the catalog: its files go now, or when the last hold on it is released."""
        self._deleted[version.digest] = version
        self._discard_if_unheld(version)

    def is_held(self, version: ExpertVersion) -> bool:
        return self._holders[version.digest] > 0

    def add(self, version: ExpertVersion) -> None:
        self._holders[version.digest] += 1

    def remove(self, version: ExpertVersion) -> None:
        assert self.is_held(version), "a version was released more often than held. This is a bug."
        self._holders[version.digest] -= 1
        if not self._holders[version.digest]:
            del self._holders[version.digest]
        self._discard_if_unheld(version)

    def _discard_if_unheld(self, version: ExpertVersion) -> None:
        if version.digest in self._deleted and not self.is_held(version):
            self._discard(self._deleted.pop(version.digest))


class Hold:
    """One request's versions, until its block ends. A routed request narrows it to those that answer."""

    def __init__(self, pins: Pins, versions: Iterable[ExpertVersion]) -> None:
        self._pins = pins
        self._held = {version.digest: version for version in versions}
        for version in self._held.values():
            pins.add(version)

    def narrow(self, *keep: ExpertVersion) -> None:
        """Gives up every version but these."""
        kept = {version.digest for version in keep}
        for digest, version in list(self._held.items()):
            if digest not in kept:
                del self._held[digest]
                self._pins.remove(version)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.narrow()
