"""What the settings leave open depends on where the engine computes."""

import pytest

from server.app import _engine_config
from server.settings import load_settings


@pytest.mark.parametrize(
    ("flags", "step_tokens", "graphs"),
    [
        ({"device": "cpu"}, 512, False),
        ({"device": "cuda"}, 4096, True),
        ({"device": "cuda:1", "step_tokens": "100"}, 100, True),
        ({"device": "cuda", "no_decode_graphs": True}, 4096, False),
    ],
)
def test_a_gpu_takes_longer_steps_and_graphs(flags: dict[str, object], step_tokens: int, graphs: bool) -> None:
    config = _engine_config(load_settings(flags), None)
    assert (config.step_tokens, config.recorder is not None) == (step_tokens, graphs)
