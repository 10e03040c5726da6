"""Teaches a fresh adapter which queries are its own: data, run, threshold. Knows no recipe and no manifest's words.

own rows   x -> accept indicator, and the answer where the recipe teaches one
negatives  x -> reject indicator
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import set_seed

from expert_store import PROFILE_FILE, WEIGHTS_FILE, InvalidAdapter, Training, read_config
from server.model.base import Base
from server.model.chat import ChatFormat, IndicatorTokens, common_prefix_length
from server.model.feature import PromptFeature
from training.averaging import Averaging
from training.batches import Collator, StepDataset, plan_steps
from training.calibrate import Calibration, calibrate
from training.data import (
    DataFile,
    Encoder,
    Example,
    digest_files,
    read_rows,
    refuse_contradictions,
    refuse_seen,
    split_holdout,
)
from training.errors import InvalidRun
from training.guard import fit_guard
from training.loop import LoopOptions, run_plan
from training.progress import RunObserver
from training.quality import Verdict, examine
from training.suffix import SuffixRunner
from training.tuning import fresh_adapter

# Where an activated adapter wakes up: at the generation prompt, or at the tokens the indicators have in common, which
# is cheaper to ask (one token instead of five with the bundled base) and leaves it less to decide with.
Wake = Literal["prompt", "indicator"]

GUARD_LEAVES_OUT = "guard_leaves_out"  # as the manifest calls it


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """What any such recipe can be told. Everything here is recorded in the manifest."""

    wake: Wake = "prompt"
    rank: int
    alpha: float | None = None  # None: twice the rank
    targets: tuple[str, ...] = ()  # empty: all linear layers
    epochs: int = 1
    learning_rate: float = 2e-3
    warmup: float = 0.05
    batch_size: int = 8
    decision_weight: float = 1.0
    holdout: float = 0.05
    max_tokens: int | None = None  # None: the base's context
    average: float = 0.0  # weight, in the end, of the adapter begun with
    seed: int = 0


@dataclass(frozen=True)
class SelectionData:
    """The files, read and found sound. Without files of their own, held-out rows are split off."""

    own: DataFile
    negatives: tuple[DataFile, ...]
    held_out_own: DataFile | None = None
    held_out_negatives: DataFile | None = None

    @property
    def roles(self) -> dict[str, tuple[Path, ...]]:
        """The files by what they are for."""
        files = {
            "own": (self.own,),
            "negatives": self.negatives,
            "held_out_own": (self.held_out_own,),
            "held_out_negatives": (self.held_out_negatives,),
        }
        return {role: tuple(file.path for file in some if file is not None) for role, some in files.items()}

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for paths in self.roles.values() for path in paths)


@dataclass(frozen=True)
class About:
    """What the manifest says in words."""

    name: str | None = None
    description: str = ""
    samples: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True)
class Examples:
    """Rows as tokens, those to train on and those held out."""

    own: list[Example]
    negatives: list[Example]
    held_out_own: list[Example]
    held_out_negatives: list[Example]


@dataclass(frozen=True)
class Fitted:
    """The base with its trained adapter, rounded as it will be saved, and what it makes of the held-out rows."""

    model: PeftModel
    own: list[Verdict]
    calibration: Calibration

    @property
    def exact_match(self) -> float:
        return sum(verdict.exact for verdict in self.own) / len(self.own)


@dataclass(frozen=True)
class Trained:
    """What came of a run; `exact_match` is None where no answers were taught. `guard_leaves_out` is the share of the
    held-out negatives; None where there is no guard."""

    folder: Path
    calibration: Calibration
    exact_match: float | None
    guard_leaves_out: float | None
    size_bytes: int


def read_data(
    own: Path, negatives: Sequence[Path], *, answers: bool, held_out_own: Path | None, held_out_negatives: Path | None
) -> SelectionData:
    """Own rows need an output where `answers` are taught. Raises InvalidData for the first file that is not sound."""
    data = SelectionData(
        own=read_rows(own, answers=answers),
        negatives=tuple(read_rows(path, answers=False) for path in negatives),
        held_out_own=read_rows(held_out_own, answers=answers) if held_out_own else None,
        held_out_negatives=read_rows(held_out_negatives, answers=False) if held_out_negatives else None,
    )
    refuse_contradictions(data.own, data.negatives)
    for held_out in (data.held_out_own, data.held_out_negatives):
        if held_out is not None:
            refuse_seen(held_out, (data.own, *data.negatives))
    if data.held_out_own is not None and data.held_out_negatives is not None:
        refuse_contradictions(data.held_out_own, [data.held_out_negatives])
    return data


def encode(
    base: Base, chat: ChatFormat, tokens: IndicatorTokens, data: SelectionData, options: SelectionOptions
) -> Examples:
    """Raises InvalidData for rows that are too long, InvalidRun where there are too few."""
    if base.tokenizer.eos_token_id is None:
        raise InvalidRun(f"the tokenizer of {base.source} names no end-of-sequence token, which every target ends with")
    limit = min(options.max_tokens or base.max_context, base.max_context)
    late = options.wake == "indicator"
    if late and not tokens.shared:
        raise InvalidRun("--wake indicator: with this tokenizer the indicators have no first token in common")
    encoder = Encoder(chat, tokens, eos=base.tokenizer.eos_token_id, max_tokens=limit, late=late)
    own = encoder.encode(data.own, accepts=True)
    negatives = [example for file in data.negatives for example in encoder.encode(file, accepts=False)]
    if min(len(own), len(negatives)) < 2:
        raise InvalidRun("at least two own rows and two negatives are needed: one of each is held out")
    if data.held_out_own is not None:
        held_out_own = encoder.encode(data.held_out_own, accepts=True)
    else:
        own, held_out_own = split_holdout(own, share=options.holdout, at_most=128, seed=options.seed)
    if data.held_out_negatives is not None:
        held_out_negatives = encoder.encode(data.held_out_negatives, accepts=False)
    else:
        negatives, held_out_negatives = split_holdout(negatives, share=options.holdout, at_most=256, seed=options.seed)
    return Examples(own, negatives, held_out_own, held_out_negatives)


def refuse_unknown_targets(base: Base, targets: Sequence[str]) -> None:
    """Raises InvalidRun naming the layers there are."""
    known = {name.rpartition(".")[2] for name in base.spec.linears}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise InvalidRun(f"--targets {', '.join(unknown)}: the base has {', '.join(sorted(known))}")


def fit(
    base: Base,
    examples: Examples,
    tokens: IndicatorTokens,
    options: SelectionOptions,
    *,
    activated: bool,
    checkpoints: Path,
    resume: bool,
    observer: RunObserver,
    start: Path | None = None,
) -> Fitted:
    """Trains an adapter, fresh or with the weights in `start`, and chooses its threshold. `base.model` is consumed.

    In the end both factors are averaged with those in `start`, as in a soup: of A and B apart, which is near to the
    average of the products for weights that began together. Raises InvalidRun where the weights in `start` are of
    another shape or there are none to average with, Diverged.
    """
    model = _begun_adapter(base, options, start)
    shared = _shared_tokens(base, examples) if activated else ()
    runner = SuffixRunner(model, shared)
    collator = Collator(
        activated=activated,
        decision_weight=options.decision_weight,
        pad=base.tokenizer.eos_token_id,
        num_shared=len(shared),
    )
    plan = plan_steps(
        examples.own, examples.negatives, batch_size=options.batch_size, epochs=options.epochs, seed=options.seed
    )
    steps = StepDataset(plan, collator.collate)
    loop = LoopOptions.of(options, len(plan))
    averaging = Averaging(model, num_steps=len(plan), share=1, beta=options.average) if options.average else None
    run_plan(
        model,
        runner,
        steps,
        loop,
        checkpoints=checkpoints,
        resume=resume,
        observer=observer,
        after_step=None if averaging is None else averaging.after_step,
    )

    _round_to_bf16(model)
    model.eval()
    own, negatives = (
        examine(runner, rows, indicators=tokens, collator=collator)
        for rows in (examples.held_out_own, examples.held_out_negatives)
    )
    return Fitted(model, own, calibrate([v.margin for v in own], [v.margin for v in negatives]))


def _begun_adapter(base: Base, options: SelectionOptions, start: Path | None) -> PeftModel:
    """Raises InvalidRun."""
    if options.average and start is None:
        raise InvalidRun(f"--average {options.average}: there is nothing to average with, say --start DIR")
    set_seed(options.seed)
    alpha = options.alpha or 2 * options.rank
    model = fresh_adapter(base, rank=options.rank, alpha=alpha, targets=options.targets)
    if start is not None:
        _take_weights(model, start)
    return model


def invocation_tokens(chat: ChatFormat, tokens: IndicatorTokens, options: SelectionOptions) -> tuple[int, ...]:
    """What wakes an activated adapter up."""
    return tokens.shared if options.wake == "indicator" else chat.generation_prompt


def save_profile(
    base: Base, chat: ChatFormat, data: SelectionData, examples: Examples, folder: Path, *, guarded: bool = True
) -> float | None:
    """What the own rows' prompts look like, for shortlists, and a guard, if wanted, where there are rows enough.

    Returns the share of the held-out negatives that the guard leaves out; None without one.
    """
    feature = PromptFeature(base, chat)
    own, held_out, negatives, held_out_negatives = (
        [feature.of(example.tokens[: example.frozen_length]) for example in some]
        for some in (examples.own, examples.held_out_own, examples.negatives, examples.held_out_negatives)
    )
    guard = None
    if guarded:
        split_off = data.held_out_own is None  # and so no different from the others
        guard = fit_guard([*own, *held_out], [], negatives) if split_off else fit_guard(own, held_out, negatives)
    profile = feature.profile(example.tokens[: example.frozen_length] for example in examples.own)
    (folder / PROFILE_FILE).write_bytes(replace(profile, guard=guard).to_bytes())
    return None if guard is None else float(1 - guard.knows(np.stack(held_out_negatives)).mean())


def weights_digest(folder: Path) -> str:
    """Raises InvalidRun where there are no weights to start from."""
    try:
        return digest_files([folder / WEIGHTS_FILE])
    except OSError as error:
        raise InvalidRun(f"--start {folder}: there is no {WEIGHTS_FILE} to read: {error}") from error


def _take_weights(model: PeftModel, folder: Path) -> None:
    """Puts a trained adapter's weights into a fresh one of the same rank, scaling and targets. Raises InvalidRun."""
    try:
        _refuse_other_scaling(model, folder)
    except InvalidAdapter as error:
        raise InvalidRun(f"--start {folder}: {error.message}") from error
    own = get_peft_model_state_dict(model)
    try:
        given = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise InvalidRun(f"--start {folder}: {WEIGHTS_FILE} cannot be read: {error}") from error
    if {name: w.shape for name, w in given.items()} != {name: w.shape for name, w in own.items()}:
        raise InvalidRun(f"--start {folder}: its adapter has another rank or other targets than this run trains")
    set_peft_model_state_dict(model, given)


def _refuse_other_scaling(model: PeftModel, folder: Path) -> None:
    """The same weights under another scaling are another function."""
    given, own = read_config(folder), cast(LoraConfig, model.peft_config["default"])
    factors = {given.scaling_of(name) for name, _ in model.get_base_model().named_modules() if given.targets(name)}
    wanted = own.lora_alpha / own.r
    if factors - {wanted}:
        scaled = ", ".join(map(str, sorted(factors)))
        raise InvalidRun(f"--start {folder}: its terms are scaled by {scaled}, this run's by {wanted}: set --alpha")


def training_record(
    recipe: str,
    data: SelectionData,
    examples: Examples,
    options: SelectionOptions,
    about: About,
    *,
    parent_version: int | None = None,
    more: Mapping[str, str],
) -> Training:
    """Where the version came from, as the manifest says it; `more` are parameters of the recipe's own."""
    settings = {k: v for k, v in asdict(options).items() if k not in ("seed", "epochs", "targets") and v is not None}
    return Training(
        recipe=recipe,
        seed=options.seed,
        data_digest=digest_files(data.paths),
        parent_version=parent_version,
        rows=len(examples.own) + len(examples.negatives),
        epochs=options.epochs,
        command=about.command,
        parameters={
            **settings,
            **more,
            "targets": ",".join(options.targets) or "all-linear",
            "own_rows": len(examples.own),
            "negative_rows": len(examples.negatives),
        },
    )


def selection_quality(examples: Examples, calibration: Calibration, guard_leaves_out: float | None) -> dict[str, float]:
    """What was measured on the held-out rows, as the manifest says it."""
    return {
        **({} if guard_leaves_out is None else {GUARD_LEAVES_OUT: guard_leaves_out}),
        "accept_rate": calibration.accept_rate,
        "reject_rate": calibration.reject_rate,
        "held_out_own": len(examples.held_out_own),
        "held_out_negatives": len(examples.held_out_negatives),
    }


def _shared_tokens(base: Base, examples: Examples) -> tuple[int, ...]:
    """What every prompt begins with, the chat template's system prompt for one.

    Nothing where attention slides: padding stands behind the shared tokens, and a window would count it.
    """
    if getattr(base.model.config, "sliding_window", None) is not None:
        return ()
    everything = (examples.own, examples.negatives, examples.held_out_own, examples.held_out_negatives)
    bodies = [e.tokens[: e.frozen_length] for group in everything for e in group]
    return bodies[0][: min(common_prefix_length(bodies[0], body) for body in bodies)]


def _round_to_bf16(model: PeftModel) -> None:
    """In place, so that what is measured is what is saved."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)
