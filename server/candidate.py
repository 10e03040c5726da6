"""What is looked at before an expert is published, in its files and in the engine. Publishes nothing, knows no HTTP."""

import math
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import jinja2

from expert_store import (
    CANDIDATE,
    GATE_FILES,
    GATE_FOLDER,
    PROFILE_FILE,
    WEIGHTS_FILE,
    AdapterInfo,
    BaseSpec,
    Catalog,
    ExpertVersion,
    InvalidAdapter,
    InvalidManifest,
    ManifestDraft,
    Profile,
    Staged,
    Vector,
    complete_manifest,
    inspect_adapter,
    read_profile,
)
from server.errors import ExpertTooLarge
from server.model.chat import ChatFormat, Prompt, activation_start

_SAMPLE = "Hello, what can you do?"
_EFFECT_TOKENS = 4


class EffectEngine(Protocol):
    """The seam to the engine; `server.engine.Engine` in production."""

    async def measure_effect(self, expert: ExpertVersion, prompt: Prompt) -> float: ...


class ProfileFeature(Protocol):
    """What profiles are made of; `server.model.feature.PromptFeature` in production."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def of(self, tokens: Sequence[int]) -> Vector: ...

    def profile(self, prompts: Iterable[Sequence[int]]) -> Profile: ...


@dataclass(frozen=True)
class Check:
    """One thing that was looked at before publication."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Part:
    """The expert or its gate: the engine loads each by itself."""

    version: ExpertVersion
    is_gate: bool = False

    def check(self, name: str) -> str:
        return f"{GATE_FOLDER}_{name}" if self.is_gate else name

    def path(self, name: str) -> str:
        """A file or a config key as an error names it."""
        return f"{GATE_FOLDER}/{name}" if self.is_gate else name


@dataclass(frozen=True)
class Candidate:
    """What was found in staged files, with a prompt for each part that shows its effect, and the checks passed."""

    info: AdapterInfo
    parts: list[Part]
    prompts: list[Prompt]
    files: list[Check]
    selection: list[Check]


class CandidateChecks:
    """Holds what is staged against the base, its chat template and the host cache of this server."""

    def __init__(
        self,
        *,
        spec: BaseSpec,
        chat: ChatFormat,
        feature: ProfileFeature,
        engine: EffectEngine,
        num_tokens: int,
        max_rank: int,
        expert_memory_bytes: int,
    ) -> None:
        self._spec = spec
        self._chat = chat
        self._feature = feature
        self._engine = engine
        self._num_tokens = num_tokens
        self._max_rank = max_rank
        self._expert_memory_bytes = expert_memory_bytes

    def look_at(self, staged: Staged, draft: ManifestDraft, name: str) -> Candidate:
        """All that needs neither the engine nor gradients, in one piece of work; puts a profile beside the files.

        Raises InvalidAdapter, InvalidManifest, UnusableIndicators, ExpertTooLarge.
        """
        info = inspect_adapter(staged.folder, self._spec, max_rank=self._max_rank)
        parts = parts_of(_candidate(staged, draft, info, name))
        files = [*_inspected(info), *(self._check_size(part) for part in parts), self._check_base(draft)]
        for part in parts:
            self._check_invocation(part)
        files.append(self._provide_profile(staged, draft))
        selection = self._check_selection(parts[-1])
        return Candidate(info, parts, [self._sample_prompt(part.version) for part in parts], files, selection)

    async def check_effect(self, part: Part, prompt: Prompt) -> Check:
        """Runs it in the engine, once. Raises InvalidAdapter."""
        effect = await self._engine.measure_effect(part.version, prompt)
        weights = part.path(WEIGHTS_FILE)
        if not math.isfinite(effect):
            reason = "with it the model's logits are not finite: its weights are damaged or far too large"
            raise InvalidAdapter(weights, f"{weights}: {reason}")
        if effect == 0:
            raise InvalidAdapter(weights, f"{weights}: it changes no logit, so it would silently act as the base model")
        said = f"it changes a logit of a sample prompt by {effect:.4g}"
        return Check(part.check("effect_on_logits"), True, said)

    def never_woken(self, catalog: Catalog) -> list[ExpertVersion]:
        """Whom the chain would ask and the chat template of today cannot: it was another when they were registered."""
        return [expert for expert in catalog.chain_experts if not self._wakes(Part(expert.asked_as))]

    def _wakes(self, part: Part) -> bool:
        try:
            self._check_selection(part)
        except Exception:  # whatever a template raises: nothing is decided by it
            return False
        return True

    def _check_base(self, draft: ManifestDraft) -> Check:
        if draft.base_fingerprint is None:
            return Check("base", True, "the manifest names no base; the shapes fit this one")
        if draft.base_fingerprint != self._spec.fingerprint:
            raise InvalidManifest(
                "base_fingerprint",
                f"base_fingerprint: the expert was trained on {draft.base_fingerprint}, this server runs "
                f"{self._spec.fingerprint}: retrain it, or start the server with that base",
            )
        return Check("base", True, f"trained on the base this server runs, {self._spec.fingerprint}")

    def _check_invocation(self, part: Part) -> None:
        """That the base can read what wakes the expert up."""
        unknown = [token for token in part.version.invocation_tokens or () if token >= self._num_tokens]
        if unknown:
            key = part.path("alora_invocation_tokens")
            raise InvalidAdapter(
                key,
                f"{key}: this base has embeddings for tokens up to {self._num_tokens - 1}, not for {unknown[0]}: the "
                "expert was trained with an extended tokenizer; train it with this base's",
            )

    def _check_selection(self, part: Part) -> list[Check]:
        """That what the chain asks can be asked with this base's tokens and chat template."""
        asked = part.version
        if asked.manifest.indicators is None:
            return []
        tokens = self._chat.indicator_tokens(asked.manifest.indicators)
        told_apart = Check("indicators", True, f"accept and reject differ in token {tokens.shared_length + 1}")
        if asked.invocation_tokens is None:
            return [told_apart]
        with _lone_message("indicators"):
            prompt = (*self._chat.generation_prompt, *tokens.shared)
        start = activation_start(prompt, asked.invocation_tokens)
        if start is None:
            key = part.path("alora_invocation_tokens")
            raise InvalidAdapter(
                key,
                f"{key} {list(asked.invocation_tokens)} do not lie in the generation prompt and the indicators' first "
                f"tokens behind it, {list(prompt)}, so the expert could never be asked: train it with this base's "
                "chat template",
            )
        return [told_apart, Check("invocation", True, f"it wakes up {len(prompt) - start} tokens before it decides")]

    def _check_size(self, part: Part) -> Check:
        given, most = part.version.weight_bytes, self._expert_memory_bytes
        if given > most:
            raise ExpertTooLarge(
                part.version.name, weight_bytes=given, budget_bytes=most, param=part.path(WEIGHTS_FILE)
            )
        said = f"its {given} bytes of weights fit the host cache, which holds {most}"
        return Check(part.check("size"), True, said)

    def _provide_profile(self, staged: Staged, draft: ManifestDraft) -> Check:
        """Checks the profile that came with the adapter, or makes one of the manifest's samples."""
        path = staged.folder / PROFILE_FILE
        if path.exists() or path.is_symlink():
            profile = read_profile(path)
            self._check_profile(profile)
            return Check("profile", True, f"it came with one, of {self._feature.name}, {self._guard(profile, draft)}")
        if not draft.samples:
            return Check("profile", True, "neither profile nor samples, so a shortlist never leaves it out")
        with _lone_message("samples"):
            profile = self._feature.profile(self._rendered(sample).tokens for sample in draft.samples)
        path.write_bytes(profile.to_bytes())
        return Check("profile", True, f"made from {len(draft.samples)} samples, of {self._feature.name}")

    def _guard(self, profile: Profile, draft: ManifestDraft) -> str:
        if profile.guard is None:
            return "without a guard"
        features = [self._feature.of(self._rendered(sample).tokens) for sample in draft.samples]
        known = sum(bool(profile.guard.knows(feature_D[None])[0]) for feature_D in features)
        return "with a guard" + (f" that knows {known} of {len(features)} samples" if features else "")

    def _check_profile(self, profile: Profile) -> None:
        made_on, runs = profile.base_fingerprint, self._spec.fingerprint
        if made_on != runs:
            raise _no_profile(f"it was made on base {made_on}, this server runs {runs}")
        if profile.feature != self._feature.name:
            raise _no_profile(f"it is of {profile.feature!r}, this server compares {self._feature.name!r}")
        if len(profile.vector_D) != self._feature.width:
            raise _no_profile(f"it has {len(profile.vector_D)} values, this base's have {self._feature.width}")

    def _rendered(self, text: str) -> Prompt:
        return self._chat.render([{"role": "user", "content": text}])

    def _sample_prompt(self, candidate: ExpertVersion) -> Prompt:
        """The end of a prompt, which wakes the expert up whatever its invocation tokens are.

        Every weight has its part in a few tokens already, and those who are being answered wait for each of them.
        """
        samples = candidate.manifest.samples
        text = samples[0] if samples else _SAMPLE
        try:
            prompt = self._rendered(text)
        except jinja2.TemplateError:  # any tokens will do
            prompt = Prompt(self._chat.encode(text), body_length=0)
        tokens, invocation = prompt.tokens, candidate.invocation_tokens or ()
        start = activation_start(tokens, invocation) if invocation else None
        if invocation and start is None:
            tokens, start = tokens + invocation, len(tokens)
        first = max(0, len(tokens) - _EFFECT_TOKENS)
        first = first if start is None else min(first, start)
        return Prompt(tokens=tokens[first:], body_length=max(0, prompt.body_length - first))


_INSPECTED = {
    "files": "both files are there, and no pickle",
    "config": "adapter_config.json asks for nothing this server cannot do",
    "header": "adapter_model.safetensors is well-formed",
    "modules": "the config, the weights and the base name the same linear layers",
    "shapes": "every tensor fits the base",
    "ranks": "the ranks are as declared and under the server's limit",
    "finite": "no NaN and no infinity",
    "effect": "the weights are not all zero",
}


def _inspected(info: AdapterInfo, prefix: str = "") -> list[Check]:
    """What was looked at in the files; those of a gate come last."""
    checks = [Check(prefix + check, True, _INSPECTED[check]) for check in info.checks if check in _INSPECTED]
    return checks if info.gate is None else checks + _inspected(info.gate, f"{GATE_FOLDER}_")


def parts_of(candidate: ExpertVersion) -> list[Part]:
    """The expert, and behind it its gate where it has one."""
    expert = Part(candidate)
    return [expert] if candidate.gate is None else [expert, Part(candidate.gate, is_gate=True)]


def _candidate(staged: Staged, draft: ManifestDraft, info: AdapterInfo, name: str) -> ExpertVersion:
    """The staged adapter as the engine wants it; its digest is nobody else's, so nothing is confused with it.

    Raises InvalidManifest.
    """
    weights = [WEIGHTS_FILE, *GATE_FILES] if info.gate is not None else [WEIGHTS_FILE]
    files = {name: staged.record(name) for name in weights}
    manifest = complete_manifest(draft, info, name=name, version=1, files=files)
    return ExpertVersion(manifest, f"{CANDIDATE}{uuid.uuid4().hex}", staged.folder)


@contextmanager
def _lone_message(field: str) -> Iterator[None]:
    """Raises InvalidManifest where the chat template refuses what `field` needs: a conversation of one message."""
    try:
        yield
    except jinja2.TemplateError as error:
        raise InvalidManifest(
            field,
            f"{field}: the base model's chat template refuses a user's message alone ({error}): leave {field} out, or "
            "start the server with another --chat-template",
        ) from error


def _no_profile(reason: str) -> InvalidAdapter:
    way_out = "train the expert anew on this server's base and version, or leave the file out and give samples"
    return InvalidAdapter(PROFILE_FILE, f"{PROFILE_FILE}: {reason}: {way_out}")
