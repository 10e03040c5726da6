"""Judges a PEFT adapter against a base model: will it be served exactly as PEFT would? Knows no store and no torch."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from expert_store.centroid import CENTROID_FILE
from expert_store.contents import ADAPTER_FILES, GATE_FOLDER
from expert_store.disk import is_plain_file, is_plain_folder
from expert_store.errors import InvalidAdapter, InvalidManifest, shown
from expert_store.manifest import FileRecord, Gate, Kind, Manifest, ManifestDraft
from expert_store.peft_config import CONFIG_FILE, AdapterConfig, read_config
from expert_store.profile import PROFILE_FILE
from expert_store.weights import A_END, B_END, KEY_START, WEIGHTS_FILE, Tensor, check_finite, has_effect, read_header

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})


@dataclass(frozen=True)
class BaseSpec:
    """What adapters are checked against: module path -> (in_features, out_features) of every linear layer."""

    fingerprint: str
    linears: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class AdapterInfo:
    """What an accepted adapter is.

    `rank` is the largest one, `target_modules` are the last parts of the adapted modules' paths, `parameters` counts
    values, `checks` names what was checked, in order. `gate` is the activated adapter that chooses for this plain one.
    """

    kind: Kind
    rank: int
    target_modules: tuple[str, ...]
    parameters: int
    invocation_tokens: tuple[int, ...] | None
    base_fingerprint: str
    checks: tuple[str, ...] = ()
    gate: "AdapterInfo | None" = None


@dataclass(frozen=True)
class _Pair:
    """The two factors of one module: a_RI and b_OR, of rank R, in features I and out features O."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def inspect_adapter(folder: Path, base: BaseSpec, *, max_rank: int, with_gate: bool = True) -> AdapterInfo:
    """Checks adapter_config.json and adapter_model.safetensors in `folder`, and in its gate/ where it has one.

    Other files but pickles are not looked at, nor the gate unless `with_gate`. Raises InvalidAdapter naming the config
    key or the file at fault, with `gate/` before it if it is the gate's.
    """
    info = _inspect(folder, base, max_rank=max_rank)
    gate = folder / GATE_FOLDER
    if not with_gate or not (gate.exists() or gate.is_symlink()):
        return info
    if info.kind == "alora":
        raise InvalidAdapter(
            GATE_FOLDER, "gate: the adapter is an activated one, which is asked as it is: leave it out"
        )
    if not is_plain_folder(gate):
        raise InvalidAdapter(GATE_FOLDER, "gate is a link or a file: give a folder with PEFT's two files")
    return replace(info, gate=_inspect_gate(gate, base, max_rank=max_rank))


def _inspect_gate(folder: Path, base: BaseSpec, *, max_rank: int) -> AdapterInfo:
    try:
        info = _inspect(folder, base, max_rank=max_rank)
        if info.kind == "lora":
            key = "alora_invocation_tokens"
            raise InvalidAdapter(key, f"{key} is null: a gate is an activated LoRA, train it with `relay train gate`")
    except InvalidAdapter as error:
        raise InvalidAdapter(f"{GATE_FOLDER}/{error.field}", f"in {GATE_FOLDER}/: {error.message}") from None
    return info


def _inspect(folder: Path, base: BaseSpec, *, max_rank: int) -> AdapterInfo:
    checks: list[str] = []
    _check_files(folder)
    checks.append("files")
    config = read_config(folder)
    checks.append("config")
    tensors = read_header(folder / WEIGHTS_FILE)
    checks.append("header")
    pairs = _pair_up(tensors)
    _check_modules(pairs, config, base)
    checks.append("modules")
    _check_shapes(pairs, base)
    checks.append("shapes")
    _check_ranks(pairs, config, max_rank)
    checks.append("ranks")
    _check_effect(folder / WEIGHTS_FILE, tensors, pairs)
    checks.extend(("finite", "effect"))
    return AdapterInfo(
        kind="lora" if config.invocation_tokens is None else "alora",
        rank=max(pair.rank for pair in pairs.values()),
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in pairs})),
        parameters=sum(tensor.num_values for tensor in tensors),
        invocation_tokens=config.invocation_tokens,
        base_fingerprint=base.fingerprint,
        checks=tuple(checks),
    )


def complete_manifest(
    draft: ManifestDraft, info: AdapterInfo, *, name: str, version: int, files: Mapping[str, FileRecord]
) -> Manifest:
    """What is wished for and what was found, as the manifest of one version. Raises InvalidManifest."""
    if info.gate is not None and draft.indicators is None:
        raise InvalidManifest(
            "indicators", "indicators: there is a gate, but nothing says with which texts it accepts and rejects"
        )
    return Manifest(
        name=name,
        version=version,
        kind=info.kind,
        rank=info.rank,
        target_modules=info.target_modules,
        parameters=info.parameters,
        invocation_tokens=info.invocation_tokens,
        base_fingerprint=info.base_fingerprint,
        description=draft.description,
        samples=draft.samples,
        indicators=draft.indicators,
        threshold=draft.threshold,
        gate=None if info.gate is None else _gate_record(info.gate),
        training=draft.training,
        quality=draft.quality,
        files=dict(files),
        created_at=datetime.now(UTC),
    )


def _gate_record(info: AdapterInfo) -> Gate:
    assert info.invocation_tokens is not None, "a plain LoRA was taken for a gate. This is a bug."
    return Gate(
        rank=info.rank,
        target_modules=info.target_modules,
        parameters=info.parameters,
        invocation_tokens=info.invocation_tokens,
    )


def read_scaling(config: AdapterConfig, module: str) -> float:
    """What PEFT multiplies B(A(x)) with in `module`, a path of the base model; patterns and rsLoRA are honoured."""
    return config.scaling_of(module)


def copy_adapter(source: Path, target: Path) -> None:
    """Copies PEFT's two files, those of a gate, a profile and a centroid, where there are any, and nothing else.

    Raises InvalidAdapter when one of two is missing.
    """
    _check_present(source)
    for name in (*ADAPTER_FILES, PROFILE_FILE, CENTROID_FILE):
        if name in ADAPTER_FILES or (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if is_plain_folder(source / GATE_FOLDER):
        (target / GATE_FOLDER).mkdir()
        copy_adapter(source / GATE_FOLDER, target / GATE_FOLDER)


def _check_files(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise InvalidAdapter(path.name, f"{path.name}: pickles are not accepted, only {WEIGHTS_FILE}")
    _check_present(folder)


def _check_present(folder: Path) -> None:
    for name in ADAPTER_FILES:
        path = folder / name
        if path.is_symlink():
            raise InvalidAdapter(name, f"{name} is a link: give the file itself")
        if not is_plain_file(path):
            raise InvalidAdapter(name, f"{name} is missing: both files of PEFT's save_pretrained are needed")


def _pair_up(tensors: tuple[Tensor, ...]) -> dict[str, _Pair]:
    """Module path -> its two factors."""
    factors: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        module, end = _split(tensor.key)
        factors.setdefault(module, {})[end] = tensor
    for module, found in factors.items():
        if len(found) != 2:
            missing = B_END if A_END in found else A_END
            raise _refusal(f"{shown(module)} has no {missing[1:]}: lora_A and lora_B come in pairs")
    return {module: _Pair(found[A_END], found[B_END]) for module, found in factors.items()}


def _split(key: str) -> tuple[str, str]:
    for end in (A_END, B_END):
        if key.startswith(KEY_START) and key.endswith(end):
            return key[len(KEY_START) : -len(end)], end
    raise _refusal(f"the tensor {shown(key)} is no LoRA factor: expected {KEY_START}<module>.lora_A|lora_B.weight")


def _check_modules(pairs: Mapping[str, _Pair], config: AdapterConfig, base: BaseSpec) -> None:
    """The config, the file and the base must name the very same modules: PEFT would drop or invent the difference."""
    for name in config.target_names:
        if not any(module == name or module.endswith(f".{name}") for module in base.linears):
            raise _wrong_target(f"{shown(name)} is no linear layer of this base: it has {_layer_names(base)}")
    for module in pairs:
        if module not in base.linears:
            raise _wrong_target(f"{shown(module)} is no linear layer of this base: it has {_layer_names(base)}")
        if not config.targets(module):
            raise _wrong_target(f"{shown(module)} has weights in {WEIGHTS_FILE}, but the config does not target it")
    for module in base.linears:
        if module not in pairs and config.targets(module):
            raise _refusal(f"the config targets {shown(module)}, but the file holds no weights for it")
    if not pairs:
        raise _refusal("holds no LoRA weights: save a trained adapter")


def _check_shapes(pairs: Mapping[str, _Pair], base: BaseSpec) -> None:
    for module, pair in pairs.items():
        num_in, num_out = base.linears[module]
        for tensor in (pair.a, pair.b):
            if len(tensor.shape) != 2 or 0 in tensor.shape:
                raise _refusal(f"{shown(tensor.key)} has shape {list(tensor.shape)}: two dimensions, none of them 0")
        expected_a, expected_b = (pair.rank, num_in), (num_out, pair.rank)
        for tensor, expected in ((pair.a, expected_a), (pair.b, expected_b)):
            if tensor.shape != expected:
                raise _refusal(
                    f"{shown(tensor.key)} has shape {list(tensor.shape)}, this base needs {list(expected)}: "
                    "was the adapter trained on another base model?"
                )


def _check_ranks(pairs: Mapping[str, _Pair], config: AdapterConfig, max_rank: int) -> None:
    for module, pair in pairs.items():
        if pair.rank > max_rank:
            raise InvalidAdapter(
                "r", f"{shown(module)} has rank {pair.rank}, at most {max_rank} is served: raise the server's max rank"
            )
        declared = config.rank_of(module)
        if pair.rank != declared:
            raise InvalidAdapter(
                "rank_pattern" if config.rank_patterns else "r",
                f"{CONFIG_FILE}: r and rank_pattern give {shown(module)} rank {declared}, its weights have {pair.rank}",
            )


def _check_effect(path: Path, tensors: tuple[Tensor, ...], pairs: Mapping[str, _Pair]) -> None:
    check_finite(path, tensors)
    if not has_effect(path, ((pair.a, pair.b) for pair in pairs.values())):
        raise _refusal("every module's update is zero, so it would answer as the base model: save it after training")


def _layer_names(base: BaseSpec) -> str:
    return ", ".join(sorted({module.rpartition(".")[2] for module in base.linears}))


def _wrong_target(message: str) -> InvalidAdapter:
    return InvalidAdapter("target_modules", f"target_modules: {message}")


def _refusal(message: str) -> InvalidAdapter:
    return InvalidAdapter(WEIGHTS_FILE, f"{WEIGHTS_FILE}: {message}")
