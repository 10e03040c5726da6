"""The catalog as one immutable snapshot: experts, versions, aliases, chain. Does no I/O and changes nothing."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from expert_store.centroid import Centroid, adapter_digest
from expert_store.contents import ADAPTER_FILES, GATE_FOLDER, gate_file
from expert_store.errors import UnknownAlias, UnknownExpert, UnknownVersion
from expert_store.manifest import Kind, Manifest
from expert_store.profile import Profile
from expert_store.weights import WEIGHTS_FILE

LIVE = "live"
CANDIDATE = "candidate:"  # begins the digest of what is not published yet
_DIGITS = re.compile(r"[0-9]+")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class ExpertVersion:
    """One published version. `folder` holds PEFT's files and never changes; two are equal iff their digests are.

    `profile` is what its prompts look like, `centroid` what their gradients do, where that is known.
    """

    manifest: Manifest = field(compare=False)
    digest: str
    folder: Path = field(compare=False)
    profile: Profile | None = field(default=None, compare=False, repr=False)
    is_gate: bool = field(default=False, compare=False, repr=False)
    centroid: Centroid | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def ref(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def kind(self) -> Kind:
        return self.manifest.kind

    @property
    def rank(self) -> int:
        return self.manifest.rank

    @property
    def invocation_tokens(self) -> tuple[int, ...] | None:
        return self.manifest.invocation_tokens

    @property
    def weight_bytes(self) -> int:
        """The size of its weights file."""
        return self.manifest.files[WEIGHTS_FILE].size_bytes

    @cached_property
    def adapter_digest(self) -> str:
        """The same for all versions that hold this very adapter."""
        return adapter_digest({name: self.manifest.files[name].sha256 for name in ADAPTER_FILES})

    @property
    def is_candidate(self) -> bool:
        """Whether it is still being checked: what is wrong with its files is then for the sender to mend."""
        return self.digest.startswith(CANDIDATE)

    @property
    def self_selecting(self) -> bool:
        """Whether it can accept and reject queries, by itself or through its gate, and so take part in the chain."""
        return self.manifest.indicators is not None

    @cached_property
    def gate(self) -> "ExpertVersion | None":
        """What accepts and rejects for a plain LoRA: to the engine an expert like any other, with a digest of its own.

        It says what its expert's manifest says, and answers nothing.
        """
        gate = self.manifest.gate
        if gate is None:
            return None
        files = {name: file for path, file in self.manifest.files.items() if (name := gate_file(path)) is not None}
        manifest = self.manifest.model_copy(
            update={**dict(gate), "kind": "alora", "gate": None, "files": files},
        )
        return ExpertVersion(manifest, f"{self.digest}/{GATE_FOLDER}", self.folder / GATE_FOLDER, is_gate=True)

    @property
    def asked_as(self) -> "ExpertVersion":
        """What the chain asks whether a query is this expert's own: its gate, or itself."""
        return self.gate or self

    @property
    def guarded(self) -> bool:
        """Whether it can be told, without asking it, that a prompt is unlike all that it was trained on."""
        return self.profile is not None and self.profile.guard is not None

    @property
    def answers_after_accept(self) -> bool:
        """Whether it was trained to say its accept string and then its answer. Those with a gate never learned to, and
        gates have no answer."""
        return self.self_selecting and self.manifest.gate is None and not self.is_gate


@dataclass(frozen=True)
class Expert:
    """All versions of one name (at least one), and the aliases pointing at them."""

    name: str
    versions: Mapping[int, ExpertVersion]
    aliases: Mapping[str, int]

    @property
    def live(self) -> ExpertVersion | None:
        """What the bare name means and the chain asks."""
        return self.versions[self.aliases[LIVE]] if LIVE in self.aliases else None

    def select(self, selector: str) -> ExpertVersion:
        """The version a number or an alias means. Raises UnknownVersion, UnknownAlias."""
        if _DIGITS.fullmatch(selector):
            return self._numbered(selector)
        if selector not in self.aliases:
            raise UnknownAlias(self.name, selector)
        return self.versions[self.aliases[selector]]

    def _numbered(self, digits: str) -> ExpertVersion:
        version = self.versions.get(int(digits)) if _VERSION.fullmatch(digits) else None
        if version is None:
            raise UnknownVersion(self.name, digits, tuple(self.versions))
        return version


@dataclass(frozen=True)
class Catalog:
    """A consistent view of the whole store. `generation` grows with every change and names the view."""

    generation: int = 0
    experts: Mapping[str, Expert] = field(default_factory=lambda: MappingProxyType({}))
    chain: tuple[str, ...] = ()
    fallback: str | None = None

    def resolve(self, ref: str) -> ExpertVersion:
        """`name` (its live version), `name@3` or `name@alias`. Raises UnknownExpert, UnknownVersion, UnknownAlias."""
        name, at, selector = ref.partition("@")
        if name not in self.experts:
            raise UnknownExpert(name)
        return self.experts[name].select(selector if at else LIVE)

    @cached_property
    def chain_experts(self) -> tuple[ExpertVersion, ...]:
        """The live versions to ask, in order. A name without a self-selecting live version keeps its place, unasked."""
        live = (self.experts[name].live for name in self.chain)
        return tuple(version for version in live if version is not None and version.self_selecting)

    @cached_property
    def guarded(self) -> bool:
        """Whether anybody in the chain is."""
        return any(version.guarded for version in self.chain_experts)

    @property
    def fallback_expert(self) -> ExpertVersion | None:
        """The live version that answers where nobody accepts; None is the base model, also while none is live."""
        return None if self.fallback is None else self.experts[self.fallback].live
