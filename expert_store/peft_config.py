"""PEFT's adapter_config.json: what it says, and what of it cannot be served. Knows no weights and no base model.

The meaning of every key is PEFT's own (peft/tuners/lora/config.py, peft/tuners/tuners_utils.py); tests hold the two
together.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from expert_store.errors import InvalidAdapter, shown
from expert_store.json_text import parse_object
from expert_store.patterns import compile_patterns

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_NAMES = 4096
MAX_PATTERNS = 1024
MAX_INVOCATION_TOKENS = 256
MAX_ALPHA = 2.0**20

HARMLESS_KEYS = frozenset(
    {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "fan_in_fan_out", "inference_mode"}
    | {"loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size"}
    | {"revision", "runtime_config"}
)
SERVED_KEYS = frozenset(
    {"alora_invocation_tokens", "alpha_pattern", "bias", "exclude_modules", "init_lora_weights", "layers_pattern"}
    | {"layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "task_type"}
    | {"use_rslora"}
)
UNSERVED_KEYS = frozenset(
    {"arrow_config", "ensure_weight_tying", "kasa_config", "layer_replication", "lora_bias", "megatron_config"}
    | {"modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora"}
    | {"use_dora", "use_qalora", "velora_config"}
)
_Number = TypeVar("_Number", int, float)
_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """A checked config. Module paths are those of the base model, as in `model.layers.0.self_attn.q_proj`."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_patterns: tuple[tuple[re.Pattern[str], int], ...]
    alpha_patterns: tuple[tuple[re.Pattern[str], float], ...]
    target_names: tuple[str, ...]
    target_pattern: re.Pattern[str] | None
    excluded_names: tuple[str, ...]
    excluded_pattern: re.Pattern[str] | None
    layers: frozenset[int]
    layer_patterns: tuple[re.Pattern[str], ...]
    invocation_tokens: tuple[int, ...] | None

    def rank_of(self, module: str) -> int:
        return next((rank for pattern, rank in self.rank_patterns if pattern.match(module)), self.rank)

    def scaling_of(self, module: str) -> float:
        """What B(A(x)) is multiplied with: alpha/r, or alpha/sqrt(r) for rank-stabilised LoRA."""
        alpha = next((alpha for pattern, alpha in self.alpha_patterns if pattern.match(module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT would adapt this linear layer."""
        if _selected(module, self.excluded_names, self.excluded_pattern):
            return False
        return _selected(module, self.target_names, self.target_pattern) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if not self.layers:
            return True
        found = next((match for pattern in self.layer_patterns if (match := pattern.match(module))), None)
        return found is not None and int(found["idx"]) in self.layers


def read_config(folder: Path) -> AdapterConfig:
    """Reads `folder`/adapter_config.json. Raises InvalidAdapter naming the key."""
    path = folder / CONFIG_FILE
    size_bytes = path.stat().st_size
    if size_bytes > MAX_CONFIG_BYTES:
        raise InvalidAdapter(CONFIG_FILE, f"{CONFIG_FILE} has {size_bytes} bytes, at most {MAX_CONFIG_BYTES} are read")
    return parse_config(parse_object(path.read_bytes(), CONFIG_FILE))


def parse_config(values: Mapping[str, Any]) -> AdapterConfig:
    """Judges the keys of a LoraConfig. Raises InvalidAdapter naming the key."""
    _check_type(values)
    _check_served(values)
    target_names, target_pattern = _read_targets(values)
    excluded_names, excluded_pattern = _read_selection(values, "exclude_modules")
    layers, layer_patterns = _read_layers(values)
    return AdapterConfig(
        rank=_positive_int(values.get("r", 8), "r"),
        alpha=_alpha(values.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=_flag(values, "use_rslora"),
        rank_patterns=_read_patterns(values, "rank_pattern", _positive_int),
        alpha_patterns=_read_patterns(values, "alpha_pattern", _alpha),
        target_names=target_names,
        target_pattern=target_pattern,
        excluded_names=excluded_names,
        excluded_pattern=excluded_pattern,
        layers=layers,
        layer_patterns=layer_patterns,
        invocation_tokens=_read_invocation_tokens(values.get("alora_invocation_tokens")),
    )


def _check_type(values: Mapping[str, Any]) -> None:
    if values.get("peft_type") != "LORA":
        raise _refusal("peft_type", f"is {_text(values.get('peft_type'))}: only LORA adapters are served")
    if values.get("task_type") not in ("CAUSAL_LM", None):
        raise _refusal("task_type", f"is {_text(values['task_type'])}: only CAUSAL_LM adapters are served")


def _check_served(values: Mapping[str, Any]) -> None:
    for key in sorted(UNSERVED_KEYS & values.keys()):
        if values[key]:
            raise _refusal(key, f"is {_text(values[key])}: this PEFT feature is not served, train without it")
    for key in sorted(values.keys() - UNSERVED_KEYS - SERVED_KEYS - HARMLESS_KEYS):
        if values[key]:
            why = "this key is not known here: remove it if it does not change what the adapter computes"
            raise InvalidAdapter(key, f"{shown(key)} is {_text(values[key])}: {why}")
    if values.get("bias", "none") != "none":
        raise _refusal("bias", f"is {_text(values['bias'])}: adapters that train biases are not served")
    init = values.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_INITS_THAT_CHANGE_THE_BASE):
        way_out = "save it with path_initial_model_for_weight_conversion"
        raise _refusal("init_lora_weights", f"is {_text(init)}, which changes the base model's weights: {way_out}")


def _read_targets(values: Mapping[str, Any]) -> tuple[tuple[str, ...], re.Pattern[str] | None]:
    value = values.get("target_modules")
    if not value:
        raise _refusal("target_modules", "is empty: list the linear layers the adapter was trained on")
    if isinstance(value, str) and value.lower() == "all-linear":
        return (), re.compile(".*")
    return _read_selection(values, "target_modules")


def _read_selection(values: Mapping[str, Any], key: str) -> tuple[tuple[str, ...], re.Pattern[str] | None]:
    """Names, or one pattern for the whole path, as PEFT tells them apart: by being a list or a string."""
    value = values.get(key) or []
    if isinstance(value, str):
        return (), compile_patterns(key, [value])[0]
    return _names(value, key), None


def _read_layers(values: Mapping[str, Any]) -> tuple[frozenset[int], tuple[re.Pattern[str], ...]]:
    """The layers adapted (none named: all), and the patterns that find a layer's number in a module path."""
    layers = _read_layer_numbers(values.get("layers_to_transform"))
    stacks = values.get("layers_pattern") or []
    names = _names([stacks] if isinstance(stacks, str) else stacks, "layers_pattern")
    if values.get("layers_to_transform") is None and names:
        raise _refusal("layers_pattern", "has no effect without layers_to_transform: give both or none")
    if isinstance(values.get("target_modules"), str) and values.get("layers_to_transform") is not None:
        raise _refusal("layers_to_transform", "works only with a list of target_modules: write that list")
    if any(not re.fullmatch(r"[\w.]+", name) for name in names):
        raise _refusal("layers_pattern", f"is {_text(stacks)}: give plain names such as 'layers'")
    templates = [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\." for name in names] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    return layers, tuple(re.compile(template) for template in templates)


def _read_layer_numbers(value: Any) -> frozenset[int]:
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if len(numbers) > MAX_NAMES or any(not _is_int(number) or number < 0 for number in numbers):
        raise _refusal("layers_to_transform", f"is {_text(value)}: must be a layer's number or a list of them")
    return frozenset(numbers)


def _read_patterns(
    values: Mapping[str, Any], key: str, number: Callable[[Any, str], _Number]
) -> tuple[tuple[re.Pattern[str], _Number], ...]:
    """The pairs in the file's order: PEFT takes the first that matches the end of a module's path."""
    pairs = values.get(key) or {}
    if not isinstance(pairs, dict) or len(pairs) > MAX_PATTERNS:
        raise _refusal(key, f"must map at most {MAX_PATTERNS} module patterns to numbers")
    numbers = [number(value, key) for value in pairs.values()]
    return tuple(zip(compile_patterns(key, list(pairs), r"(.*\.)?({})$"), numbers, strict=True))


def _read_invocation_tokens(value: Any) -> tuple[int, ...] | None:
    key = "alora_invocation_tokens"
    if value is None:
        return None
    if value == []:
        raise _refusal(key, "is empty, so the adapter would never be active: give the tokens, or null for a plain LoRA")
    if not isinstance(value, list) or len(value) > MAX_INVOCATION_TOKENS:
        raise _refusal(key, f"must be a list of at most {MAX_INVOCATION_TOKENS} token ids")
    if any(not _is_int(token) or not 0 <= token < 2**31 for token in value):
        raise _refusal(key, f"is {_text(value)}: token ids are non-negative integers")
    return tuple(value)


def _selected(module: str, names: tuple[str, ...], pattern: re.Pattern[str] | None) -> bool:
    if pattern is not None:
        return pattern.fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _names(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_NAMES or any(not isinstance(name, str) for name in value):
        raise _refusal(key, f"must be a list of at most {MAX_NAMES} names")
    return tuple(value)


def _flag(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key) or False
    if not isinstance(value, bool):
        raise _refusal(key, f"is {_text(value)}: must be true or false")
    return value


def _positive_int(value: Any, key: str) -> int:
    if not _is_int(value) or value < 1:
        raise _refusal(key, f"has {_text(value)}: ranks are positive integers")
    return int(value)


def _alpha(value: Any, key: str) -> float:
    if not (_is_int(value) or isinstance(value, float)) or not 0 < value <= MAX_ALPHA:
        raise _refusal(key, f"has {_text(value)}: must be a number above 0, at most {MAX_ALPHA:g}")
    return float(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refusal(key: str, message: str) -> InvalidAdapter:
    return InvalidAdapter(key, f"{CONFIG_FILE}: {key} {message}")


def _text(value: Any) -> str:
    return shown(value) if isinstance(value, str) else shown(str(value))[1:-1]
