"""What is said about one version of an expert, and the rules for saying it. Knows no files, no adapters, no catalog."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from expert_store.errors import InvalidManifest, InvalidName

MAX_DRAFT_BYTES = 256 * 1024
Kind = Literal["lora", "alora"]
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGITS = re.compile(r"[0-9]+")


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Returns `name`. Raises InvalidName."""
    if not is_name(name):
        raise InvalidName(name)
    return name


def check_alias(alias: str) -> str:
    """Returns `alias`; a plain number is refused because it would read as a version. Raises InvalidName."""
    if not is_name(alias) or _DIGITS.fullmatch(alias):
        raise InvalidName(alias, field="alias")
    return alias


def _named(name: str) -> str:
    try:
        return check_name(name)
    except InvalidName as error:
        raise ValueError(error.message) from None


Name = Annotated[str, AfterValidator(_named)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Fingerprint = Annotated[str, Field(min_length=1, max_length=128)]
Line = Annotated[str, Field(min_length=1, max_length=256)]
Sample = Annotated[str, Field(min_length=1, max_length=4000)]
Indicator = Annotated[str, Field(min_length=1, max_length=64)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Threshold = Annotated[float, Field(gt=0, lt=1)]
Quality = Annotated[dict[Line, FiniteFloat], Field(max_length=64)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Indicators(_Model):
    """The texts an expert begins its answer with: `accept` when the query is its own, `reject` when it is not."""

    accept: Indicator = "<<pos>>"
    reject: Indicator = "<<neg>>"

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.accept == self.reject:
            raise ValueError(f"accept and reject are both {self.accept!r}: an expert must be able to say no")
        return self


class Training(_Model):
    """Where a version came from. `parameters` holds what else the recipe was given."""

    recipe: Line
    seed: int
    data_digest: Digest
    parent_version: PositiveInt | None = None
    rows: NonNegativeInt
    epochs: Annotated[FiniteFloat, Field(ge=0)]
    command: Annotated[str, Field(max_length=4000)] | None = None
    parameters: Annotated[dict[Line, bool | int | FiniteFloat | Line], Field(max_length=64)] = {}


class ManifestDraft(_Model):
    """What a recipe writes beside an adapter and what a registration may send; the store fills in the rest."""

    name: Name | None = None
    base_fingerprint: Fingerprint | None = None
    description: Annotated[str, Field(max_length=4000)] = ""
    samples: Annotated[tuple[Sample, ...], Field(max_length=16)] = ()
    indicators: Indicators | None = None
    threshold: Threshold = 0.5
    training: Training | None = None
    quality: Quality = {}

    def to_bytes(self) -> bytes:
        return _canonical(self)


class Gate(_Model):
    """The activated LoRA that chooses for a plain one; the manifest's indicators and threshold are then the gate's."""

    rank: PositiveInt
    target_modules: Annotated[tuple[Line, ...], Field(min_length=1)]
    parameters: PositiveInt
    invocation_tokens: Annotated[tuple[Token, ...], Field(min_length=1)]


class FileRecord(_Model):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: NonNegativeInt


class Manifest(_Model):
    """Everything known of a published version. Its digest is that of its exact bytes on disk."""

    format: Literal[1] = 1
    name: Name
    version: PositiveInt
    kind: Kind
    rank: PositiveInt
    target_modules: Annotated[tuple[Line, ...], Field(min_length=1)]
    parameters: PositiveInt
    invocation_tokens: Annotated[tuple[Token, ...], Field(min_length=1)] | None
    base_fingerprint: Fingerprint
    description: str
    samples: tuple[Sample, ...]
    indicators: Indicators | None
    threshold: Threshold
    gate: Gate | None = None  # manifests from before there were gates lack it
    training: Training | None
    quality: Quality
    files: dict[Line, FileRecord]
    created_at: AwareDatetime

    @model_validator(mode="after")
    def _kind_has_its_tokens(self) -> Self:
        if (self.kind == "alora") != (self.invocation_tokens is not None):
            raise ValueError(f"kind {self.kind!r} contradicts invocation_tokens {self.invocation_tokens}")
        return self

    @model_validator(mode="after")
    def _gate_has_something_to_do(self) -> Self:
        if self.gate is not None and (self.kind != "lora" or self.indicators is None):
            raise ValueError(f"a gate needs kind 'lora' and indicators, here are {self.kind!r} and {self.indicators}")
        return self

    def to_bytes(self) -> bytes:
        return _canonical(self)


def parse_draft(data: bytes | str | Mapping[str, Any]) -> ManifestDraft:
    """Reads JSON text, or an already parsed object. Raises InvalidManifest naming the field."""
    if isinstance(data, bytes | str) and len(data) > MAX_DRAFT_BYTES:
        raise InvalidManifest(None, f"the manifest has {len(data)} bytes, at most {MAX_DRAFT_BYTES} are read")
    try:
        if isinstance(data, bytes | str):
            return ManifestDraft.model_validate_json(data)
        return ManifestDraft.model_validate(data)
    except ValidationError as error:
        raise invalid_manifest(error, ManifestDraft) from None


def parse_manifest(data: bytes) -> Manifest:
    """Reads a stored manifest.json. Raises InvalidManifest naming the field."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise invalid_manifest(error, ManifestDraft) from None


def invalid_manifest(error: ValidationError, model: type[BaseModel]) -> InvalidManifest:
    """The first thing that is wrong with a manifest of that kind."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    hint = f": known are {', '.join(model.model_fields)}" if first["type"] == "extra_forbidden" else ""
    return InvalidManifest(field, f"manifest: {field or 'the text'}: {first['msg']}{hint}")


def _canonical(model: BaseModel) -> bytes:
    text = json.dumps(model.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    return text.encode() + b"\n"
