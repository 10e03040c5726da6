"""How much context a base has."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig

from server.model.base import load_base
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
