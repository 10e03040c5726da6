"""catalog.json: its schema and the pure steps from one state to the next. Does no I/O and reads no manifests."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError, model_validator

from expert_store.catalog import LIVE
from expert_store.errors import (
    CorruptStore,
    InvalidFallback,
    UnknownAlias,
    UnknownExpert,
    UnknownVersion,
    VersionInUse,
    shown,
)
from expert_store.manifest import Digest, Name


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExpertRecord(_Record):
    """One name. Outlives its last version, so that no number is ever given twice.

    `joined_chain` says that the name was put into the chain once; whoever took it out again meant it.
    """

    next_version: PositiveInt = 1
    versions: Mapping[PositiveInt, Digest] = {}
    aliases: Mapping[str, PositiveInt] = {}
    joined_chain: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if any(version >= self.next_version for version in self.versions):
            raise ValueError(f"next_version {self.next_version} was given already")
        lost = [alias for alias, version in self.aliases.items() if version not in self.versions]
        if lost:
            raise ValueError(f"aliases {lost} point at no version")
        return self


class CatalogRecord(_Record):
    """The whole state of a store but for the immutable version folders."""

    format: Literal[1] = 1
    generation: NonNegativeInt = 0
    chain: tuple[str, ...] = ()
    fallback: str | None = None
    experts: Mapping[Name, ExpertRecord] = {}

    @model_validator(mode="after")
    def _chain_exists(self) -> Self:
        lost = [name for name in self.chain if name not in self.experts or not self.experts[name].versions]
        if lost or len(set(self.chain)) != len(self.chain):
            raise ValueError(f"the chain repeats a name or holds names without a version: {lost or self.chain}")
        return self

    @model_validator(mode="after")
    def _fallback_exists(self) -> Self:
        name = self.fallback
        if name is not None and (name not in self.experts or not self.experts[name].versions):
            raise ValueError(f"the fallback {name} has no version")
        return self

    def to_bytes(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"

    def next_version(self, name: str) -> int:
        return self.experts[name].next_version if name in self.experts else 1

    def has(self, name: str, version: int) -> bool:
        return name in self.experts and version in self.experts[name].versions

    def with_version(self, name: str, digest: str, *, activate: bool, self_selecting: bool) -> Self:
        """Adds the next version. The first self-selecting version of a name puts it at the front of the chain."""
        old = self.experts.get(name, ExpertRecord())
        joins = self_selecting and not old.joined_chain
        expert = ExpertRecord(
            next_version=old.next_version + 1,
            versions={**old.versions, old.next_version: digest},
            aliases={**old.aliases, LIVE: old.next_version} if activate else old.aliases,
            joined_chain=old.joined_chain or joins,
        )
        return self._next(expert=(name, expert), chain=(name, *self.chain) if joins else self.chain)

    def without_version(self, name: str, version: int) -> Self:
        """Forgets a version. With its last one a name leaves the chain and is no fallback. Raises VersionInUse."""
        old = self._expert_with(name, version)
        pointing = sorted(alias for alias, target in old.aliases.items() if target == version)
        if pointing:
            raise VersionInUse(name, version, pointing)
        left = {number: digest for number, digest in old.versions.items() if number != version}
        expert = old.model_copy(update={"versions": left, "joined_chain": old.joined_chain and bool(left)})
        chain = self.chain if left else tuple(other for other in self.chain if other != name)
        following = self._next(expert=(name, expert), chain=chain)
        return following if left or name != self.fallback else following.model_copy(update={"fallback": None})

    def with_alias(self, name: str, alias: str, version: int) -> Self:
        old = self._expert_with(name, version)
        return self._next(expert=(name, old.model_copy(update={"aliases": {**old.aliases, alias: version}})))

    def without_alias(self, name: str, alias: str) -> Self:
        old = self._expert(name)
        if alias not in old.aliases:
            raise UnknownAlias(name, alias)
        left = {other: version for other, version in old.aliases.items() if other != alias}
        return self._next(expert=(name, old.model_copy(update={"aliases": left})))

    def with_chain(self, order: Sequence[str]) -> Self:
        joined = {name: self._expert(name).model_copy(update={"joined_chain": True}) for name in order}
        update = {"experts": {**self.experts, **joined}, "chain": tuple(order), "generation": self.generation + 1}
        return self.model_copy(update=update)

    def with_fallback(self, name: str | None) -> Self:
        """Raises UnknownExpert, InvalidFallback."""
        if name is not None and "@" in name:
            raise InvalidFallback(f"{shown(name)} names a version: give the bare name, whose live version then answers")
        if name is not None and LIVE not in self._expert(name).aliases:
            raise InvalidFallback(
                f"expert {shown(name)} has no live version to answer: point its alias live at one first"
            )
        return self.model_copy(update={"fallback": name, "generation": self.generation + 1})

    def _next(self, *, expert: tuple[str, ExpertRecord], chain: tuple[str, ...] | None = None) -> Self:
        name, record = expert
        return self.model_copy(
            update={
                "generation": self.generation + 1,
                "experts": {**self.experts, name: record},
                "chain": self.chain if chain is None else chain,
            }
        )

    def _expert(self, name: str) -> ExpertRecord:
        if name not in self.experts or not self.experts[name].versions:
            raise UnknownExpert(name)
        return self.experts[name]

    def _expert_with(self, name: str, version: int) -> ExpertRecord:
        expert = self._expert(name)
        if version not in expert.versions:
            raise UnknownVersion(name, version, tuple(expert.versions))
        return expert


def parse_record(data: bytes, path: Path) -> CatalogRecord:
    """Reads catalog.json. Raises CorruptStore."""
    try:
        return CatalogRecord.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the text"
        raise CorruptStore(path, f"{where}: {first['msg']}: restore the file from a backup") from None
