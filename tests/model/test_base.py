"""How much context a base has, and in which number format it is loaded."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from server.errors import BaseModelError
from server.model import base as module
from server.model.base import load_base
from server.model.native import Kernels
from tests.support import tiny

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 128,
}


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        ({"rope_type": "default", "rope_theta": 10_000.0}, 512),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}, 512),
        ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}, 512),
        (LONGROPE, 128),
    ],
)
def test_a_base_whose_rotation_depends_on_the_longest_text_is_served_as_far_as_it_does_not(
    tmp_path: Path, rope: dict[str, object], tokens: int
) -> None:
    tiny.write_tokenizer(tmp_path)
    config = LlamaConfig(**{**tiny.FAMILIES["llama"].to_dict(), "rope_parameters": rope})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    base = load_base(str(tmp_path), dtype="fp32", device="cpu", cache=tmp_path)
    assert base.max_context == tokens


@pytest.mark.parametrize(
    ("native", "with_kernels", "family", "dtype"),
    [
        (True, False, "llama", torch.bfloat16),
        (True, False, "gpt2", torch.bfloat16),
        (False, False, "llama", torch.float32),
        (False, True, "llama", torch.bfloat16),
        (False, True, "gpt2", torch.float32),  # torch's own modules multiply, and they are slow at it
    ],
)
def test_a_base_is_in_bf16_where_that_is_fast(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kernels: Kernels,
    native: bool,
    with_kernels: bool,
    family: str,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(module, "multiplies_bf16", lambda _: native)
    folder = str(tiny.write_base(tmp_path / "base", family))
    base = load_base(folder, device="cpu", cache=tmp_path, kernels=kernels if with_kernels else None)
    assert base.dtype == dtype
    named = load_base(folder, dtype="fp32", device="cpu", cache=tmp_path, kernels=kernels if with_kernels else None)
    assert named.dtype == torch.float32


def test_int8_is_for_a_family_the_kernels_compute(tmp_path: Path, kernels: Kernels) -> None:
    folders = {name: str(tiny.write_base(tmp_path / name, name)) for name in ("llama", "gpt2")}
    base = load_base(folders["llama"], dtype="int8", device="cpu", cache=tmp_path, kernels=kernels)
    assert (base.format, base.dtype) == ("int8", torch.bfloat16)
    assert base.spec.fingerprint == load_base(folders["llama"], device="cpu", cache=tmp_path).spec.fingerprint
    with pytest.raises(BaseModelError, match="'gpt2' is not computed by the kernels; leave --dtype at auto"):
        load_base(folders["gpt2"], dtype="int8", device="cpu", cache=tmp_path, kernels=kernels)
    with pytest.raises(BaseModelError, match=r"there are none.*leave --dtype at auto"):
        load_base(folders["llama"], dtype="int8", device="cpu", cache=tmp_path)


def test_a_token_that_cannot_be_sampled_stops_nothing(tmp_path: Path) -> None:
    """A tokenizer may know more tokens than its model; none of them may reach the logits."""
    folder = tiny.write_base(tmp_path)
    known = load_base(str(folder), dtype="fp32", device="cpu", cache=tmp_path).stop_tokens
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [*known, 400]}))
    assert load_base(str(folder), dtype="fp32", device="cpu", cache=tmp_path).stop_tokens == known
