"""The gate recipe: lets a plain LoRA trained elsewhere choose its queries, without touching it. Knows no terminal.

own rows   x -> "<<pos>>"          negatives  x -> "<<neg>>"
one fresh activated LoRA, supervised on the indicator alone; its threshold is calibrated as an expert's is. What
comes out is the plain LoRA as it was, with the gate beside it.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from expert_store import (
    ADAPTER_FILES,
    GATE_FOLDER,
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Indicators,
    InvalidManifest,
    Manifest,
    ManifestDraft,
    file_record,
    inspect_adapter,
    parse_draft,
    parse_manifest,
    read_config,
)
from server.model.base import Base
from server.model.chat import ChatFormat
from training.data import digest_roles
from training.errors import InvalidRun
from training.output import open_folder, remove_checkpoints, save_adapter
from training.progress import RunObserver
from training.selection import (
    GUARD_LEAVES_OUT,
    About,
    Examples,
    Fitted,
    SelectionData,
    SelectionOptions,
    Trained,
    encode,
    fit,
    invocation_tokens,
    refuse_unknown_targets,
    save_profile,
    selection_quality,
    training_record,
)

_MAX_RANK = 1 << 16  # how much is served is the server's to say


@dataclass(frozen=True, kw_only=True)
class GateOptions(SelectionOptions):
    """What the recipe can be told."""

    rank: int = 4


@dataclass(frozen=True)
class Parent:
    """The plain LoRA that gets a gate, and what its manifest says of it: a recipe's, or that of a store's version."""

    folder: Path
    said: ManifestDraft | Manifest

    @property
    def version(self) -> int | None:
        return self.said.version if isinstance(self.said, Manifest) else None

    @property
    def sha256(self) -> str:
        """Of its weights."""
        return file_record(self.folder / WEIGHTS_FILE).sha256


def read_parent(folder: Path) -> Parent:
    """Reads a folder that PEFT, a recipe or a store has written; a gate in it is not looked at.

    Raises InvalidRun for one that has no use for a gate, InvalidAdapter or InvalidManifest for one that is damaged.
    """
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise InvalidRun(f"{folder / name} is not there: --expert must hold what PEFT's save_pretrained writes")
    if read_config(folder).invocation_tokens is not None:
        raise InvalidRun(f"{folder} holds an activated LoRA, which is asked as it is: a gate is for a plain one")
    said = _read_manifest(folder / MANIFEST_FILE)
    if said.indicators is not None and not (folder / GATE_FOLDER).is_dir():
        raise InvalidRun(
            f"{folder} holds an expert that accepts and rejects by itself, and would stop to with a gate: "
            "remove the indicators from its manifest if it does not"
        )
    return Parent(folder, said)


def train_gate(
    base: Base,
    parent: Parent,
    data: SelectionData,
    options: GateOptions,
    about: About,
    *,
    out: Path,
    resume: bool,
    observer: RunObserver,
) -> Trained:
    """Trains a gate and leaves the plain LoRA's two files, gate/, a profile and manifest.json in `out`.

    `base.model` is consumed: its linear layers are wrapped in place. Raises InvalidAdapter where the plain LoRA is not
    one for this base, InvalidData, InvalidRun, Diverged.
    """
    if out.resolve() == parent.folder.resolve():
        raise InvalidRun(f"--out {out} is the folder of the expert itself: choose another")
    _refuse_other_base(base, parent)
    indicators = Indicators()
    chat = ChatFormat(base.tokenizer)
    tokens = chat.indicator_tokens(indicators)
    refuse_unknown_targets(base, options.targets)
    examples = encode(base, chat, tokens, data, options)
    identity = {"base": base.spec.fingerprint, "data": digest_roles(data.roles), "options": asdict(options)}
    checkpoints = open_folder(out, identity | {"expert": parent.sha256}, resume=resume)

    fitted = fit(
        base, examples, tokens, options, activated=True, checkpoints=checkpoints, resume=resume, observer=observer
    )
    for name in ADAPTER_FILES:
        shutil.copyfile(parent.folder / name, out / name)
    gate = out / GATE_FOLDER
    gate.mkdir(exist_ok=True)
    save_adapter(fitted.model, base, gate, invocation_tokens=invocation_tokens(chat, tokens, options))
    leaves_out = save_profile(base, chat, data, examples, out)
    draft = _draft(base, parent, data, examples, options, about, indicators, fitted, leaves_out)
    (out / MANIFEST_FILE).write_bytes(draft.to_bytes())
    remove_checkpoints(checkpoints)
    return Trained(out, fitted.calibration, None, leaves_out, (gate / WEIGHTS_FILE).stat().st_size)


def _read_manifest(path: Path) -> ManifestDraft | Manifest:
    """A recipe's manifest, a store's, or an empty one where there is none. Raises InvalidManifest."""
    if not path.is_file():
        return ManifestDraft()
    data = path.read_bytes()
    try:
        return parse_draft(data)
    except InvalidManifest as no_draft:
        try:
            return parse_manifest(data)
        except InvalidManifest:
            raise no_draft from None


def _refuse_other_base(base: Base, parent: Parent) -> None:
    trained_on = parent.said.base_fingerprint
    if trained_on is not None and trained_on != base.spec.fingerprint:
        raise InvalidRun(f"{parent.folder} was trained on base {trained_on}, not {base.spec.fingerprint}: give --base")
    inspect_adapter(parent.folder, base.spec, max_rank=_MAX_RANK, with_gate=False)


def _draft(
    base: Base,
    parent: Parent,
    data: SelectionData,
    examples: Examples,
    options: GateOptions,
    about: About,
    indicators: Indicators,
    fitted: Fitted,
    guard_leaves_out: float | None,
) -> ManifestDraft:
    """What the plain LoRA's manifest says stays, where nothing else is said."""
    said = parent.said
    record = training_record(
        "gate",
        data,
        examples,
        options,
        about,
        parent_version=parent.version,
        more={"parent_sha256": parent.sha256},
    )
    return ManifestDraft(
        name=about.name or said.name,
        base_fingerprint=base.spec.fingerprint,
        description=about.description or said.description,
        samples=about.samples or said.samples,
        indicators=indicators,
        threshold=fitted.calibration.threshold,
        training=record,
        quality={
            **{name: value for name, value in said.quality.items() if name != GUARD_LEAVES_OUT},
            **selection_quality(examples, fitted.calibration, guard_leaves_out),
        },
    )
