"""The SEE recipe: trains an expert that says itself which queries are its own (arXiv 2504.06664). Knows no terminal.

    own rows   x -> "<<pos>> answer"          negatives  x -> "<<neg>>"
    one fresh LoRA, supervised on the targets alone; then a threshold for sigmoid(logit(pos) - logit(neg)) is chosen
    on held-out rows and written into the manifest, beside where the expert came from and how good it is.

Choices of ours: the deciding token is weighed apart from the other target tokens; a step holds own rows and negatives
in the data's proportion; an expert may be an activated one, which leaves the prompt's keys and values to the base.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from expert_store import MANIFEST_FILE, WEIGHTS_FILE, Indicators, ManifestDraft
from server.model.base import Base
from server.model.chat import ChatFormat
from training.data import digest_roles
from training.errors import InvalidRun
from training.output import open_folder, remove_checkpoints, save_adapter
from training.progress import RunObserver
from training.selection import (
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
    weights_digest,
)


@dataclass(frozen=True, kw_only=True)
class SeeOptions(SelectionOptions):
    """What the recipe can be told."""

    kind: Literal["alora", "lora"] = "alora"
    rank: int = 8


def train_see(
    base: Base,
    data: SelectionData,
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
    refuse_unknown_targets(base, options.targets)
    activated = options.kind == "alora"
    if options.wake == "indicator" and not activated:
        raise InvalidRun("--wake indicator: only activated experts wake up, so it needs --kind alora")
    examples = encode(base, chat, tokens, data, options)
    origin = None if start is None else weights_digest(start)
    identity = {"base": base.spec.fingerprint, "data": digest_roles(data.roles), "options": asdict(options)}
    checkpoints = open_folder(out, identity | {"start": origin}, resume=resume)

    fitted = fit(
        base,
        examples,
        tokens,
        options,
        activated=activated,
        checkpoints=checkpoints,
        resume=resume,
        observer=observer,
        start=start,
    )
    invocation = invocation_tokens(chat, tokens, options) if activated else None
    save_adapter(fitted.model, base, out, invocation_tokens=invocation)
    # The rows that the adapter in `start` was trained on are not here to be known.
    leaves_out = save_profile(base, chat, data, examples, out, guarded=start is None)
    draft = _draft(base, data, examples, options, about, indicators, fitted, origin, leaves_out)
    (out / MANIFEST_FILE).write_bytes(draft.to_bytes())
    remove_checkpoints(checkpoints)
    return Trained(out, fitted.calibration, fitted.exact_match, leaves_out, (out / WEIGHTS_FILE).stat().st_size)


def _draft(
    base: Base,
    data: SelectionData,
    examples: Examples,
    options: SeeOptions,
    about: About,
    indicators: Indicators,
    fitted: Fitted,
    origin: str | None,
    guard_leaves_out: float | None,
) -> ManifestDraft:
    more = {} if origin is None else {"start": origin}
    return ManifestDraft(
        name=about.name,
        base_fingerprint=base.spec.fingerprint,
        description=about.description,
        samples=about.samples,
        indicators=indicators,
        threshold=fitted.calibration.threshold,
        training=training_record("see", data, examples, options, about, more=more),
        quality={
            **selection_quality(examples, fitted.calibration, guard_leaves_out),
            "exact_match": fitted.exact_match,
        },
    )
