"""What the forms of registrations hold, and what becomes of their fields. Judges neither adapters nor routers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request

from expert_store import (
    CENTROID_FILE,
    CONFIG_FILE,
    GATE_FILES,
    PROFILE_FILE,
    ROUTER_FILE,
    WEIGHTS_FILE,
    ManifestDraft,
    RouterDraft,
    parse_draft,
    parse_router_draft,
)
from server.api.errors import InvalidField
from server.api.form import FormFields, receive_form

GATE_CONFIG, GATE_WEIGHTS = GATE_FILES
_MANIFEST_BYTES = 256 * 1024
EXPERT_FORM = FormFields(
    files={
        "adapter_config": CONFIG_FILE,
        "adapter_model": WEIGHTS_FILE,
        "gate_config": GATE_CONFIG,
        "gate_weights": GATE_WEIGHTS,
        "profile": PROFILE_FILE,
        "centroid": CENTROID_FILE,
    },
    texts={
        "name": 1024,
        "manifest": _MANIFEST_BYTES,
        "description": 32 * 1024,
        "threshold": 64,
        "activate": 16,
    },
    file_bytes=dict.fromkeys((CONFIG_FILE, GATE_CONFIG, PROFILE_FILE, CENTROID_FILE), 1024 * 1024),
)
ROUTER_FORM = FormFields(files={"router": ROUTER_FILE}, texts={"manifest": _MANIFEST_BYTES})
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class RegistrationForm:
    """What came beside the files."""

    name: str | None
    draft: ManifestDraft
    activate: bool


async def receive_registration(request: Request, folder: Path, *, max_upload_bytes: int) -> RegistrationForm:
    """Writes an expert's files into `folder` and returns the rest.

    Raises UnsupportedBody, MalformedBody, BodyTooLarge, InvalidField, UnknownField, InvalidAdapter (a pickle),
    InvalidManifest.
    """
    return _form(await receive_form(request, folder, EXPERT_FORM, max_upload_bytes=max_upload_bytes))


async def receive_router(request: Request, folder: Path, *, max_upload_bytes: int) -> RouterDraft:
    """Writes a learned router's weights into `folder` and returns its manifest. Raises what `receive_registration`
    does."""
    texts = await receive_form(request, folder, ROUTER_FORM, max_upload_bytes=max_upload_bytes)
    for name, there in (("manifest", "manifest" in texts), ("router", (folder / ROUTER_FILE).is_file())):
        if not there:
            raise InvalidField(f"the form lacks {name}: send both files that `relay train router` wrote", param=name)
    return parse_router_draft(texts["manifest"])


def _form(fields: dict[str, bytes]) -> RegistrationForm:
    """Fields of the form win over the same fields of the manifest."""
    texts = {name: _text(name, value) for name, value in fields.items() if name != "manifest"}
    draft = parse_draft(fields["manifest"]) if "manifest" in fields else ManifestDraft()
    own: dict[str, Any] = {name: texts[name] for name in ("description", "threshold") if name in texts}
    if own:
        draft = parse_draft({**draft.model_dump(exclude_unset=True), **own})
    return RegistrationForm(texts.get("name"), draft, _boolean("activate", texts.get("activate", "true")))


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidField(f"{name} is not UTF-8 text", param=name) from error


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise InvalidField(f"{name} is {text!r}: give true or false", param=name)
    return _BOOLEANS[text.lower()]
