"""adapter_config.json: every key that cannot be served is refused by its name, every harmless one is accepted."""

from pathlib import Path
from typing import Any

import pytest

from expert_store import InvalidAdapter, inspect_adapter, parse_config, read_scaling

from .samples import BASE, adapter_config, write_adapter

CONFIG = "adapter_config.json"
MODULE = "model.layers.0.self_attn.q_proj"


def refusal(folder: Path) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as caught:
        inspect_adapter(folder, BASE, max_rank=8)
    return caught.value


def config_refusal(**changes: Any) -> InvalidAdapter:
    with pytest.raises(InvalidAdapter) as caught:
        parse_config(adapter_config(**changes))
    return caught.value


@pytest.mark.parametrize(
    "text",
    [b"", b"not json", b"[]", b'{"r": NaN}', b'{"r": 1, "r": 2}', b"\xff\xfe", b"[" * 200_000, b'{"r": ' + b"9" * 5000],
    ids=["empty", "text", "list", "nan", "twice", "utf16", "deep", "long"],
)
def test_a_config_that_is_no_strict_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / CONFIG).write_bytes(text)
    assert refusal(folder).field == CONFIG


def test_a_huge_config_is_not_read(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", revision="x" * 2**20)
    assert "1048576" in refusal(folder).message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("task_type", "SEQ_CLS"),
        ("use_dora", True),
        ("bias", "all"),
        ("bias", None),
        ("lora_bias", True),
        ("modules_to_save", ["lm_head"]),
        ("trainable_token_indices", [1]),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["experts.up"]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 3}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"num_samples": 8}),
        ("velora_config", {"scale": 1.0}),
        ("megatron_config", {"a": 1}),
        ("ensure_weight_tying", True),
        ("something_new", "on"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "loftq"),
        ("use_rslora", "yes"),
        ("r", 0),
        ("r", "8"),
        ("r", True),
        ("lora_alpha", 0),
        ("lora_alpha", -1),
        ("lora_alpha", 1e300),
        ("lora_alpha", None),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"q_proj": "2"}),
        ("alpha_pattern", {"(": 2}),
        ("target_modules", None),
        ("target_modules", []),
        ("target_modules", [1]),
        ("target_modules", {"q_proj": 1}),
        ("exclude_modules", 3),
        ("layers_to_transform", "1"),
        ("layers_to_transform", [-1]),
        ("layers_to_transform", [True]),
        ("layers_pattern", "layers"),
        ("alora_invocation_tokens", []),
        ("alora_invocation_tokens", "<|im_start|>"),
        ("alora_invocation_tokens", [1, -2]),
        ("alora_invocation_tokens", [1.0]),
        ("alora_invocation_tokens", [2**40]),
        ("alora_invocation_tokens", [1] * 300),
    ],
)
def test_a_config_value_that_cannot_be_served_names_its_key(key: str, value: Any) -> None:
    error = config_refusal(**{key: value})
    assert error.field == key
    assert key in error.message


def test_layers_need_a_list_of_targets() -> None:
    assert config_refusal(target_modules="q_proj", layers_to_transform=[0]).field == "layers_to_transform"
    assert config_refusal(layers_to_transform=[0], layers_pattern=["h|layers"]).field == "layers_pattern"


@pytest.mark.parametrize(
    "harmless",
    [
        {"something_new": None, "another": False, "a_list": [], "a_size": 0},
        {"qalora_group_size": 16, "megatron_core": "megatron.core", "peft_version": "9.9"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}},
        {"inference_mode": False, "lora_dropout": 0.1, "fan_in_fan_out": True, "revision": "main"},
        {"task_type": None, "auto_mapping": {"base_model_class": "LlamaForCausalLM"}},
        {"alora_invocation_tokens": None},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_keys_without_an_effect_on_the_answer_are_accepted(tmp_path: Path, harmless: dict[str, Any]) -> None:
    assert inspect_adapter(write_adapter(tmp_path / "a", **harmless), BASE, max_rank=2).kind == "lora"


def test_invocation_tokens_make_an_activated_expert(tmp_path: Path) -> None:
    info = inspect_adapter(write_adapter(tmp_path / "a", alora_invocation_tokens=[1, 520]), BASE, max_rank=2)
    assert (info.kind, info.invocation_tokens) == ("alora", (1, 520))


def test_scaling_without_patterns() -> None:
    assert read_scaling(parse_config(adapter_config(r=4, lora_alpha=8)), MODULE) == 2.0
    assert read_scaling(parse_config(adapter_config(r=4, lora_alpha=8, use_rslora=True)), MODULE) == 4.0


# Patterns


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+", "(.*)*x", "(?=q)q_proj", r"(q)\1", ".*" * 5, "(a|a)" * 14, "q{1,9}", "q?", "x" * 300, "[^.]*", "a\n"],
    ids=lambda pattern: pattern[:12],
)
def test_patterns_that_could_take_long_are_refused(pattern: str) -> None:
    error = config_refusal(rank_pattern={pattern: 2})
    assert error.field == "rank_pattern"
    assert "module names" in error.message


def test_many_patterns_with_wildcards_are_refused_together() -> None:
    assert config_refusal(rank_pattern={f".*{i}.*proj": 2 for i in range(5)}).field == "rank_pattern"
    parse_config(adapter_config(rank_pattern={f"model.layers.{i}.self_attn.q_proj": 2 for i in range(500)}))


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "a)"])
def test_a_broken_pattern_is_refused(pattern: str) -> None:
    assert config_refusal(rank_pattern={pattern: 2}).field == "rank_pattern"


@pytest.mark.parametrize(
    "pattern", [r".*\.(q_proj|v_proj)$", r"^model\.layers\.\d+\.self_attn\.q_proj", r"(?:q|k)_proj", "[qk]_proj"]
)
def test_usual_patterns_are_accepted(pattern: str) -> None:
    assert parse_config(adapter_config(rank_pattern={pattern: 7})).rank_of(MODULE) == 7
