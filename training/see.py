"""The SEE recipe: trains an expert that says itself which queries are its own (arXiv 2504.06664). Knows no terminal.

    own rows   x -> "<<pos>> answer"          negatives  x -> "<<neg>>"
    one fresh LoRA, supervised on the targets alone; then a threshold for sigmoid(logit(pos) - logit(neg)) is chosen
    on held-out rows and written into the manifest, beside where the expert came from and how good it is.

Choices of ours: the deciding token is weighed apart from the other target tokens; a step holds own rows and negatives
in the data's proportion; an expert may be an activated one, which leaves the prompt's keys and values to the base.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import set_seed

from expert_store import ADAPTER_FILES, MANIFEST_FILE, PROFILE_FILE, WEIGHTS_FILE, Indicators, ManifestDraft, Training
from server.model.base import Base, public_name
from server.model.chat import ChatFormat, IndicatorTokens, common_prefix_length
from server.model.feature import PromptFeature
from training.batches import Collator, StepDataset, plan_steps
from training.calibrate import Calibration, calibrate
from training.data import DataFile, Encoder, Example, digest_files, read_rows, refuse_contradictions, split_holdout
from training.errors import InvalidRun
from training.evaluate import Verdict, examine
from training.loop import LoopOptions, run_plan
from training.progress import RunObserver
from training.suffix import SuffixRunner

CHECKPOINTS = "checkpoints"


# Where an activated expert wakes up: at the generation prompt, or at the tokens the indicators have in common, which is
# cheaper to ask (one token instead of five with the bundled base) and leaves it less to decide with.
Wake = Literal["prompt", "indicator"]


@dataclass(frozen=True, kw_only=True)
class SeeOptions:
    """What the recipe can be told. Everything here is recorded in the manifest."""

    kind: Literal["alora", "lora"] = "alora"
    wake: Wake = "prompt"
    rank: int = 8
    alpha: float | None = None  # None: twice the rank
    targets: tuple[str, ...] = ()  # empty: all linear layers
    epochs: int = 1
    learning_rate: float = 2e-3
    warmup: float = 0.05
    batch_size: int = 8
    decision_weight: float = 1.0
    holdout: float = 0.05
    max_tokens: int | None = None  # None: the base's context
    seed: int = 0


@dataclass(frozen=True)
class SeeData:
    """The files, read and found sound. Without files of their own, held-out rows are split off."""

    own: DataFile
    negatives: tuple[DataFile, ...]
    held_out_own: DataFile | None = None
    held_out_negatives: DataFile | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        files = (self.own, *self.negatives, self.held_out_own, self.held_out_negatives)
        return tuple(file.path for file in files if file is not None)


@dataclass(frozen=True)
class About:
    """What the manifest says in words."""

    name: str | None = None
    description: str = ""
    samples: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True)
class Trained:
    """What came of a run."""

    folder: Path
    calibration: Calibration
    exact_match: float
    size_bytes: int


@dataclass(frozen=True)
class _Examples:
    own: list[Example]
    negatives: list[Example]
    held_out_own: list[Example]
    held_out_negatives: list[Example]


def read_data(
    own: Path, negatives: Sequence[Path], *, held_out_own: Path | None, held_out_negatives: Path | None
) -> SeeData:
    """Raises InvalidData for the first file that is not sound."""
    data = SeeData(
        own=read_rows(own, answers=True),
        negatives=tuple(read_rows(path, answers=False) for path in negatives),
        held_out_own=read_rows(held_out_own, answers=True) if held_out_own else None,
        held_out_negatives=read_rows(held_out_negatives, answers=False) if held_out_negatives else None,
    )
    refuse_contradictions(data.own, data.negatives)
    return data


def train_see(
    base: Base,
    data: SeeData,
    options: SeeOptions,
    about: About,
    *,
    out: Path,
    resume: bool,
    observer: RunObserver,
    start: Path | None = None,
) -> Trained:
    """Trains one expert and leaves PEFT's two files, its profile and manifest.json in `out`.

    It begins with the weights of the adapter in `start`, where one is given, else with fresh ones. `base.model` is
    consumed: its linear layers are wrapped in place. Raises InvalidData, InvalidRun, Diverged.
    """
    indicators = Indicators()
    chat = ChatFormat(base.tokenizer)
    tokens = chat.indicator_tokens(indicators)
    _refuse_unknown_targets(base, options.targets)
    if options.wake == "indicator" and options.kind != "alora":
        raise InvalidRun("--wake indicator: only activated experts wake up, so it needs --kind alora")
    examples = _encode(base, chat, tokens, data, options)
    origin = None if start is None else _weights_digest(start)
    checkpoints = _open_folder(out, _identity(base, data, options, origin), resume=resume)
    profile = PromptFeature(base, chat).profile(example.tokens[: example.frozen_length] for example in examples.own)

    set_seed(options.seed)
    pupil = _new_pupil(base, examples, options)
    if start is not None:
        _take_weights(pupil.model, start)
    plan = plan_steps(
        examples.own, examples.negatives, batch_size=options.batch_size, epochs=options.epochs, seed=options.seed
    )
    steps = StepDataset(plan, pupil.collator.collate)
    loop = _loop_options(options, len(plan))
    run_plan(pupil.model, pupil.runner, steps, loop, checkpoints=checkpoints, resume=resume, observer=observer)

    _round_to_bf16(pupil.model)
    pupil.model.eval()
    own, negatives = (
        examine(pupil.runner, rows, indicators=tokens, collator=pupil.collator)
        for rows in (examples.held_out_own, examples.held_out_negatives)
    )
    calibration = calibrate([v.margin for v in own], [v.margin for v in negatives])
    invocation = tokens.shared if options.wake == "indicator" else chat.generation_prompt
    _save_adapter(pupil.model, base, invocation if options.kind == "alora" else None, out)
    (out / PROFILE_FILE).write_bytes(profile.to_bytes())
    draft = _draft(base, data, examples, options, about, indicators, calibration, own, origin)
    (out / MANIFEST_FILE).write_bytes(draft.to_bytes())
    shutil.rmtree(checkpoints)
    return Trained(out, calibration, _exact_match(own), (out / WEIGHTS_FILE).stat().st_size)


@dataclass(frozen=True)
class _Pupil:
    """The base with its new adapter, and how rows are put through it."""

    model: PeftModel
    runner: SuffixRunner
    collator: Collator


def _new_pupil(base: Base, examples: _Examples, options: SeeOptions) -> _Pupil:
    activated = options.kind == "alora"
    model = _fresh_adapter(base, options)
    shared = _shared_tokens(base, examples) if activated else ()
    collator = Collator(
        activated=activated,
        decision_weight=options.decision_weight,
        pad=base.tokenizer.eos_token_id,
        num_shared=len(shared),
    )
    return _Pupil(model, SuffixRunner(model, shared), collator)


def _encode(base: Base, chat: ChatFormat, tokens: IndicatorTokens, data: SeeData, options: SeeOptions) -> _Examples:
    if base.tokenizer.eos_token_id is None:
        raise InvalidRun(f"the tokenizer of {base.source} names no end-of-sequence token, which every target ends with")
    limit = min(options.max_tokens or base.max_context, base.max_context)
    late = options.wake == "indicator"
    encoder = Encoder(chat, tokens, eos=base.tokenizer.eos_token_id, max_tokens=limit, late=late)
    own = encoder.encode(data.own)
    negatives = [example for file in data.negatives for example in encoder.encode(file)]
    if min(len(own), len(negatives)) < 2:
        raise InvalidRun("at least two own rows and two negatives are needed: one of each is held out")
    if data.held_out_own is not None:
        held_out_own = encoder.encode(data.held_out_own)
    else:
        own, held_out_own = split_holdout(own, share=options.holdout, at_most=128, seed=options.seed)
    if data.held_out_negatives is not None:
        held_out_negatives = encoder.encode(data.held_out_negatives)
    else:
        negatives, held_out_negatives = split_holdout(negatives, share=options.holdout, at_most=256, seed=options.seed)
    return _Examples(own, negatives, held_out_own, held_out_negatives)


def _refuse_unknown_targets(base: Base, targets: Sequence[str]) -> None:
    known = {name.rpartition(".")[2] for name in base.spec.linears}
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise InvalidRun(f"--targets {', '.join(unknown)}: the base has {', '.join(sorted(known))}")


def _shared_tokens(base: Base, examples: _Examples) -> tuple[int, ...]:
    """What every prompt begins with, the chat template's system prompt for one.

    Nothing where attention slides: padding stands behind the shared tokens, and a window would count it.
    """
    if getattr(base.model.config, "sliding_window", None) is not None:
        return ()
    everything = (examples.own, examples.negatives, examples.held_out_own, examples.held_out_negatives)
    bodies = [e.tokens[: e.frozen_length] for group in everything for e in group]
    return bodies[0][: min(common_prefix_length(bodies[0], body) for body in bodies)]


def _loop_options(options: SeeOptions, num_steps: int) -> LoopOptions:
    return LoopOptions(
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        seed=options.seed,
        save_every=max(10, num_steps // 8),
    )


def _identity(base: Base, data: SeeData, options: SeeOptions, origin: str | None) -> dict[str, Any]:
    """What must not change between a run and its resumption."""
    data_digest = digest_files(data.paths)
    return {"base": base.spec.fingerprint, "data": data_digest, "options": asdict(options), "start": origin}


def _weights_digest(folder: Path) -> str:
    try:
        return digest_files([folder / WEIGHTS_FILE])
    except OSError as error:
        raise InvalidRun(f"--start {folder}: there is no {WEIGHTS_FILE} to read: {error}") from error


def _take_weights(model: PeftModel, folder: Path) -> None:
    """Puts a trained adapter's weights into a fresh one of the same rank and targets. Raises InvalidRun."""
    own = get_peft_model_state_dict(model)
    try:
        given = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise InvalidRun(f"--start {folder}: {WEIGHTS_FILE} cannot be read: {error}") from error
    if {name: w.shape for name, w in given.items()} != {name: w.shape for name, w in own.items()}:
        raise InvalidRun(f"--start {folder}: its adapter has another rank or other targets than this run trains")
    set_peft_model_state_dict(model, given)


def _open_folder(out: Path, identity: dict[str, Any], *, resume: bool) -> Path:
    """The folder for checkpoints. Raises InvalidRun rather than overwrite an expert or mix two runs."""
    if (out / MANIFEST_FILE).exists():
        raise InvalidRun(f"{out} already holds a trained expert: choose another --out or remove it")
    checkpoints = out / CHECKPOINTS
    record = checkpoints / "run.json"
    text = json.dumps(identity, sort_keys=True, indent=2)
    if record.exists():
        if not resume:
            raise InvalidRun(f"{out} holds an unfinished run: pass --resume to continue it, or choose another --out")
        if record.read_text() != text:
            raise InvalidRun(
                f"{record} differs from this run in base, data or options: repeat the command that began it"
            )
        return checkpoints
    checkpoints.mkdir(parents=True, exist_ok=True)
    record.write_text(text)
    return checkpoints


def _fresh_adapter(base: Base, options: SeeOptions) -> PeftModel:
    """The base with a new plain LoRA; an activated one is trained on suffixes alone, where it is active throughout."""
    if base.device.type == "cpu":
        base.model.set_attn_implementation("eager")  # its backward pass takes two thirds of sdpa's time here
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=cast(int, options.alpha or 2 * options.rank),  # PEFT takes floats as well
        target_modules=list(options.targets) or "all-linear",
    )
    model: PeftModel = get_peft_model(base.model, config)
    return model


def _round_to_bf16(model: PeftModel) -> None:
    """In place, so that what is measured is what is saved."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)


def _save_adapter(model: PeftModel, base: Base, invocation: Sequence[int] | None, out: Path) -> None:
    config = cast(LoraConfig, model.peft_config["default"])
    config.base_model_name_or_path = public_name(base.source)
    if invocation is not None:
        config.alora_invocation_tokens = list(invocation)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    building = out / "building"
    model.save_pretrained(str(building), save_embedding_layers=False)
    for name in ADAPTER_FILES:
        os.replace(building / name, out / name)
    shutil.rmtree(building)


def _exact_match(verdicts: Sequence[Verdict]) -> float:
    return sum(v.exact for v in verdicts) / len(verdicts)


def _draft(
    base: Base,
    data: SeeData,
    examples: _Examples,
    options: SeeOptions,
    about: About,
    indicators: Indicators,
    calibration: Calibration,
    own: Sequence[Verdict],
    origin: str | None,
) -> ManifestDraft:
    settings = {k: v for k, v in asdict(options).items() if k not in ("seed", "epochs", "targets") and v is not None}
    return ManifestDraft(
        name=about.name,
        base_fingerprint=base.spec.fingerprint,
        description=about.description,
        samples=about.samples,
        indicators=indicators,
        threshold=calibration.threshold,
        training=Training(
            recipe="see",
            seed=options.seed,
            data_digest=digest_files(data.paths),
            rows=len(examples.own) + len(examples.negatives),
            epochs=options.epochs,
            command=about.command,
            parameters={
                **settings,
                **({} if origin is None else {"start": origin}),
                "targets": ",".join(options.targets) or "all-linear",
                "own_rows": len(examples.own),
                "negative_rows": len(examples.negatives),
            },
        ),
        quality={
            "accept_rate": calibration.accept_rate,
            "reject_rate": calibration.reject_rate,
            "exact_match": _exact_match(own),
            "held_out_own": len(own),
            "held_out_negatives": len(examples.held_out_negatives),
        },
    )
