"""Prompts as the gradients they would train a base adapter with (ELREA, arXiv 2502.00089). Recipe and server use this
one function. Knows weights and tokens; nothing of experts, clusters or requests.

    g = d/d(A, B) of the mean next-token loss on the prompt's own tokens      feature = unit(count sketch of g)

The answer takes no part, so that a query has the same feature as the training row it is like. Nor do tokens that the
chat template puts at the beginning of every prompt, whose part of the gradient is the same for all, nor the generation
prompt. The loss counts no more than the first MAX_TOKENS.
"""

import asyncio
import copy
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import PreTrainedModel

from expert_store import A_END, B_END, KEY_START, WEIGHTS_FILE, ExpertVersion, InvalidAdapter, Vector, read_config
from server.errors import InvalidRequest, NonFiniteGradient
from server.model.base import Base
from server.model.chat import ChatFormat, Prompt, common_prefix_length
from server.model.fused import fusible
from server.model.products import multiplies_bf16
from server.model.sketch import CountSketch, Projection

# Legend: T tokens, R rank, I/O input and output width, V vocabulary, G values of the adapter, D of a feature.

FEATURE = "prompt-gradient/1"  # a new number whenever the same prompt would give another vector
MAX_TOKENS = 256
_KEPT = 2  # base adapters in memory: the one in use, and the one before it or that of a shadow


@dataclass(frozen=True)
class _Terms:
    """What the adapter adds to one linear, as leaves of a gradient."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float

    def __call__(self, _module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook: output + s B A x, in fp32, as PEFT computes it."""
        delta = inputs[0].to(self.a_RI.dtype) @ self.a_RI.T @ self.b_OR.T * self.scaling
        return output + delta.to(output.dtype)

    def fits(self, widths: tuple[int, int]) -> bool:
        rank, (num_in, num_out) = len(self.a_RI), widths
        return (self.a_RI.shape, self.b_OR.shape) == ((rank, num_in), (num_out, rank))


class GradientRunner:
    """The base model, with gradients, beside whatever else it does. One pass at a time, in any thread.

    Make it before an engine takes the base over: weights are shared, no layer is copied.
    """

    def __init__(self, base: Base, chat: ChatFormat) -> None:
        self._model = base.model if fusible(base.model.config) else _twin(base.model)
        if base.device.type == "cpu" and (base.dtype != torch.bfloat16 or multiplies_bf16(base.device)):
            self._model.set_attn_implementation("eager")  # its backward pass takes two thirds of sdpa's time then
        self._opening = chat.opening
        self.widths = base.spec.linears
        self._running = threading.Lock()

    @property
    def device(self) -> torch.device:
        return self._model.device

    def gradients(self, prompt: Prompt, terms: dict[str, _Terms]) -> tuple[list[Tensor], float]:
        """Of every term's A and B, in order, and the loss. Raises InvalidRequest for a prompt of one token."""
        tokens, first = _counted(prompt, self._opening)
        leaves = [leaf for term in terms.values() for leaf in (term.a_RI, term.b_OR)]
        with self._running, torch.inference_mode(False), torch.enable_grad(), self._attached(terms):
            loss = self._loss(tokens, first)
            return list(torch.autograd.grad(loss, leaves)), float(loss.detach())

    def _loss(self, tokens: Sequence[int], first: int) -> Tensor:
        """Mean next-token loss of tokens[first:]."""
        tokens_1T = torch.tensor([list(tokens)], device=self.device)
        before = torch.arange(first - 1, len(tokens) - 1, device=self.device)
        logits_1TV: Tensor = self._model(input_ids=tokens_1T, use_cache=False, logits_to_keep=before).logits
        return cross_entropy(logits_1TV[0].float(), tokens_1T[0, first:])

    @contextmanager
    def _attached(self, terms: dict[str, _Terms]) -> Iterator[None]:
        hooks = [self._model.get_submodule(path).register_forward_hook(term) for path, term in terms.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True, eq=False)
class Measured:
    """A prompt's feature [D], and its mean next-token loss."""

    vector_D: Vector
    loss: float


class GradientFeature:
    """Features for one base adapter and one projection. Any thread may ask; one is computed at a time."""

    def __init__(self, runner: GradientRunner, adapter: Path, projection: Projection) -> None:
        """`adapter` is a folder with PEFT's two files of a plain LoRA. Raises InvalidAdapter."""
        self._runner = runner
        self._terms = _read_terms(adapter, runner.widths, runner.device)
        length = sum(term.a_RI.numel() + term.b_OR.numel() for term in self._terms.values())
        self._sketch = CountSketch(projection, length, runner.device)

    @property
    def projection(self) -> Projection:
        return self._sketch.projection

    def of(self, prompt: Prompt) -> Vector:
        """[D] fp32 of length 1. Raises InvalidRequest for a prompt of one token, NonFiniteGradient."""
        return self.measure(prompt).vector_D

    def measure(self, prompt: Prompt) -> "Measured":
        """As `of`, with the loss."""
        gradients, loss = self._runner.gradients(prompt, self._terms)
        sketch_D = self._sketch(torch.cat([gradient.flatten() for gradient in gradients]))
        length = float(sketch_D.norm())
        if not 0 < length < float("inf"):
            raise NonFiniteGradient(length)
        vector_D: Vector = (sketch_D / length).cpu().numpy()
        return Measured(vector_D, loss)


class GradientWorker:
    """Answers event loops from a thread of its own, one prompt after the other, so that neither the engine nor whoever
    else needs a thread waits for gradients. Keeps the base adapters it used last."""

    def __init__(self, base: Base, chat: ChatFormat) -> None:
        self._runner = GradientRunner(base, chat)
        self._base_fingerprint = base.spec.fingerprint
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gradient")
        self._features: OrderedDict[tuple[str, Projection], GradientFeature] = OrderedDict()

    @property
    def base_fingerprint(self) -> str:
        return self._base_fingerprint

    @property
    def feature(self) -> str:
        return FEATURE

    async def of(self, base: ExpertVersion, prompt: Prompt, *, width: int, seed: int) -> Vector:
        """[width]. Raises InvalidRequest, NonFiniteGradient, InvalidAdapter."""

        def compute() -> Vector:
            return self._feature(base, Projection(width, seed)).of(prompt)

        return await asyncio.get_running_loop().run_in_executor(self._thread, compute)

    def close(self) -> None:
        """Ends the thread once it has done what it is at."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _feature(self, base: ExpertVersion, projection: Projection) -> GradientFeature:
        key = (base.adapter_digest, projection)
        if key not in self._features:
            self._features[key] = GradientFeature(self._runner, base.folder, projection)
        self._features.move_to_end(key)
        while len(self._features) > _KEPT:
            self._features.popitem(last=False)
        return self._features[key]


def mean_direction(features_ND: Vector) -> Vector:
    """[D] of length 1."""
    mean_D: Vector = normalize(torch.from_numpy(features_ND).double().mean(dim=0), dim=0).float().numpy()
    return mean_D


def _counted(prompt: Prompt, opening: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """The tokens to run, and the first of them whose loss counts; at least one does."""
    tokens = prompt.tokens[: prompt.body_length][:MAX_TOKENS]
    first = max(1, common_prefix_length(tokens, opening))
    if first >= len(tokens):  # nothing but what the template says
        tokens, first = prompt.tokens[:MAX_TOKENS], 1
    if len(tokens) < 2:
        raise InvalidRequest("a prompt of one token has no gradient to route by: name an expert", param="prompt")
    return tokens, first


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules once more, on the very same parameters and buffers."""
    shared = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _read_terms(folder: Path, widths: Mapping[str, tuple[int, int]], device: torch.device) -> dict[str, _Terms]:
    """By module path, in order; `widths`: of the base's linears, input and output. Raises InvalidAdapter."""
    config = read_config(folder)
    if config.invocation_tokens is not None:
        raise InvalidAdapter(
            "alora_invocation_tokens",
            "alora_invocation_tokens: an activated LoRA leaves the prompt alone, so it has no gradient there: "
            "a base adapter must be a plain LoRA",
        )
    try:
        tensors = load_file(folder / WEIGHTS_FILE, device=str(device))
    except (OSError, SafetensorError) as error:
        reason = error if isinstance(error, SafetensorError) else error.strerror or "it is not there"
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE} cannot be read: {reason}") from error
    paths = sorted(key.removeprefix(KEY_START).removesuffix(A_END) for key in tensors if key.endswith(A_END))

    def leaf(path: str, end: str) -> Tensor:
        return tensors[f"{KEY_START}{path}{end}"].float().requires_grad_()

    try:
        terms = {path: _Terms(leaf(path, A_END), leaf(path, B_END), config.scaling_of(path)) for path in paths}
    except KeyError as error:
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: it lacks {error}, so it was changed") from error
    if not all(term.fits(widths.get(path, (0, 0))) for path, term in terms.items()):
        raise InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: its tensors do not fit this base, so it was changed")
    return terms
