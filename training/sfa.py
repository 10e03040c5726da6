"""The SFA recipe: an expert's next version, from new data without the old (arXiv 2501.05559). Knows no terminal.

    theta_o = the weights a data set begins with; after every p * T of its T steps, and once at its end:
    theta <- (1 - beta) * theta + beta * theta_o          then the next data set begins

Choice of ours: A stays as the parent has it and only B is trained, so that averaging B averages the products exactly.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import set_seed

from expert_store import (
    GATE_FOLDER,
    LIVE,
    MANIFEST_FILE,
    PROFILE_FILE,
    WEIGHTS_FILE,
    ExpertStore,
    ExpertVersion,
    Guard,
    ManifestDraft,
    Training,
)
from server.model.base import Base
from server.model.chat import ChatFormat
from server.model.feature import FEATURE, PromptFeature
from training.averaging import Averaging, freeze_down_projections, unfreeze_adapter
from training.data import DataFile, Example, digest_files, digest_roles
from training.errors import InvalidRun
from training.guard import widen_guard
from training.output import open_folder, remove_checkpoints, save_adapter
from training.progress import RunObserver
from training.suffix import SuffixRunner
from training.tuning import AnswerFormat, TuningOptions, continued_adapter, plan, tune

_CATALOG = "catalog.json"


@dataclass(frozen=True, kw_only=True)
class SfaOptions(TuningOptions):
    """What the recipe can be told. `share` is the paper's p."""

    share: float = 0.25
    beta: float = 0.5
    max_tokens: int | None = None  # None: the base's context

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InvalidRun(f"--p {self.share}: a share of the steps, above 0 and at most 1")
        if not 0 <= self.beta <= 1:
            raise InvalidRun(f"--beta {self.beta}: a weight from 0 (plain fine-tuning) to 1 (nothing changes)")


@dataclass(frozen=True)
class NextVersion:
    """What came of a run: a folder to register as the parent's next version."""

    folder: Path
    parent: ExpertVersion
    num_rows: int
    size_bytes: int


def find_parent(store: Path, ref: str) -> ExpertVersion:
    """The version that `name`, `name@3` or `name@alias` means. Raises InvalidRun, StoreError."""
    if not (store / _CATALOG).is_file():
        raise InvalidRun(f"--store {store}: there is no expert store; the server's is the folder of its own --store")
    return ExpertStore.open(store).catalog.resolve(ref if "@" in ref else f"{ref}@{LIVE}")


def train_sfa(
    base: Base,
    parent: ExpertVersion,
    data: Sequence[DataFile],
    options: SfaOptions,
    *,
    negatives: Sequence[DataFile] = (),
    command: str | None = None,
    out: Path,
    resume: bool,
    observer: RunObserver,
) -> NextVersion:
    """Trains through the data sets in turn and leaves an expert's folder in `out`, with the parent in its manifest.

    `negatives`, prompts to reject, are mixed into every data set. Indicators, threshold, gate, profile and samples are
    the parent's; a guard is widened to the new rows. `base.model` is consumed.

    Raises InvalidData, InvalidRun, Diverged.
    """
    _refuse_unsuitable(base, parent, negatives)
    stages, activated = _encode(base, parent, data, negatives, options)
    roles = {"data": [file.path for file in data], "negatives": [file.path for file in negatives]}
    identity = {"base": base.spec.fingerprint, "data": digest_roles(roles), "options": asdict(options)}
    checkpoints = open_folder(out, identity | {"parent": parent.digest}, resume=resume)

    set_seed(options.seed)
    model = continued_adapter(base, parent.folder)
    for number, examples in enumerate(stages):
        _run_stage(base, model, examples, options, number, activated, checkpoints, resume=resume, observer=observer)

    unfreeze_adapter(model)
    save_adapter(model, base, out, invocation_tokens=parent.invocation_tokens)
    _copy_beside(parent, base, data, out)
    draft = _draft(parent, [*roles["data"], *roles["negatives"]], stages, options, command)
    (out / MANIFEST_FILE).write_bytes(draft.to_bytes())
    remove_checkpoints(checkpoints)
    return NextVersion(out, parent, sum(map(len, stages)), (out / WEIGHTS_FILE).stat().st_size)


def _refuse_unsuitable(base: Base, parent: ExpertVersion, negatives: Sequence[DataFile]) -> None:
    trained_on = parent.manifest.base_fingerprint
    if trained_on != base.spec.fingerprint:
        raise InvalidRun(f"{parent.ref} was trained on base {trained_on}, not {base.spec.fingerprint}: give --base")
    if negatives and not parent.answers_after_accept:
        raise InvalidRun(f"--negatives: {parent.ref} does not reject queries by itself, so it cannot learn from them")
    if base.tokenizer.eos_token_id is None:
        raise InvalidRun(f"the tokenizer of {base.source} names no end-of-sequence token, which every target ends with")


def _encode(
    base: Base, parent: ExpertVersion, data: Sequence[DataFile], negatives: Sequence[DataFile], options: SfaOptions
) -> tuple[list[list[Example]], bool]:
    """One list of examples a data set; and whether prompts are left to the base. Raises InvalidData."""
    chat = ChatFormat(base.tokenizer)
    said = parent.manifest.indicators
    indicators = chat.indicator_tokens(said) if said is not None and parent.answers_after_accept else None
    rows = AnswerFormat(chat, base.tokenizer.eos_token_id, indicators, parent.invocation_tokens)
    limit = min(options.max_tokens or base.max_context, base.max_context)
    rejected = [example for file in negatives for example in rows.encode(file, max_tokens=limit)]
    stages = [[*rows.encode(file, max_tokens=limit), *rejected] for file in data]
    return stages, parent.kind == "alora"


def _run_stage(
    base: Base,
    model: PeftModel,
    examples: Sequence[Example],
    options: SfaOptions,
    number: int,
    activated: bool,
    checkpoints: Path,
    *,
    resume: bool,
    observer: RunObserver,
) -> None:
    """One data set, or its result where it was finished before."""
    finished = checkpoints / f"stage-{number}.safetensors"
    if finished.exists():
        set_peft_model_state_dict(model, load_file(finished))
        return
    freeze_down_projections(model)  # in every stage: the Trainer leaves the whole adapter trainable
    steps = plan(examples, options, pad=base.tokenizer.eos_token_id, activated=activated)
    averaging = Averaging(model, num_steps=len(steps), share=options.share, beta=options.beta)
    tune(
        model,
        SuffixRunner(model),
        steps,
        options,
        checkpoints=checkpoints / f"stage-{number}",
        resume=resume,
        observer=observer,
        after_step=averaging.after_step,
    )
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(model)
    writing = finished.with_suffix(".writing")
    save_file({name: w.contiguous() for name, w in weights.items()}, writing)
    os.replace(writing, finished)


def _copy_beside(parent: ExpertVersion, base: Base, data: Sequence[DataFile], out: Path) -> None:
    """Profile and gate judge prompts, which the new answers do not change; but a guard is to know the new rows, too."""
    profile = parent.profile
    if profile is not None and profile.guard is not None and profile.feature == FEATURE:
        guard = _widened(profile.guard, base, data)
        (out / PROFILE_FILE).write_bytes(replace(profile, guard=guard).to_bytes())
    elif profile is not None:
        shutil.copyfile(parent.folder / PROFILE_FILE, out / PROFILE_FILE)
    if parent.gate is not None:
        shutil.copytree(parent.folder / GATE_FOLDER, out / GATE_FOLDER, dirs_exist_ok=True)


def _widened(guard: Guard, base: Base, data: Sequence[DataFile]) -> Guard:
    chat = ChatFormat(base.tokenizer)
    feature = PromptFeature(base, chat)
    for file in data:  # each by itself, or a small one could be among the few that are left out
        prompts = [chat.render([{"role": "user", "content": row.input}]).tokens for row in file.rows]
        guard = widen_guard(guard, [feature.of(tokens) for tokens in prompts])
    return guard


def _draft(
    parent: ExpertVersion,
    paths: Sequence[Path],
    stages: Sequence[Sequence[Example]],
    options: SfaOptions,
    command: str | None,
) -> ManifestDraft:
    settings = {k: v for k, v in asdict(options).items() if k not in ("seed", "epochs") and v is not None}
    record = Training(
        recipe="sfa",
        seed=options.seed,
        data_digest=digest_files(paths),
        parent_version=parent.version,
        rows=sum(map(len, stages)),
        epochs=options.epochs,
        command=command,
        parameters={
            **settings,
            "parent_digest": parent.digest,
            "data_sets": len(stages),
            "averaged": "B, with A frozen",
        },
    )
    return ManifestDraft(
        name=parent.name,
        base_fingerprint=parent.manifest.base_fingerprint,
        description=parent.manifest.description,
        samples=parent.manifest.samples,
        indicators=parent.manifest.indicators,
        threshold=parent.manifest.threshold,
        training=record,
    )
