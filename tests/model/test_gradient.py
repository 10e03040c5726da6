"""Gradient features against PEFT's own gradients, before and after an engine has taken the base over."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from expert_store import WEIGHTS_FILE, InvalidAdapter
from server.engine import Engine
from server.errors import InvalidRequest
from server.model import products
from server.model.base import Base, load_base
from server.model.chat import ChatFormat, Prompt
from server.model.gradient import MAX_TOKENS, GradientFeature, GradientRunner, mean_direction
from server.model.native import Kernels
from server.model.sketch import Projection, mixed_bits
from tests.engine.conftest import Recorder, small_config
from tests.support import tiny

PROJECTION = Projection(width=256, seed=5)
TEXTS = ["What is the capital of France?", "the quick brown fox " * 12, "0"]
FAMILIES = ["llama", "qwen2", "mistral", "gemma2", "gpt2"]


def load(folder: Path, dtype: str = "fp32") -> Base:
    return load_base(str(folder), dtype=dtype, device="cpu", cache=folder)  # type: ignore[arg-type]


def by_peft(folder: Path, adapter: Path, prompt: Prompt, first: int) -> np.ndarray:
    """PEFT's model, torch's gradients, and the sketch value by value."""
    model = tiny.oracle(folder, adapter, torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    gradients = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tokens = torch.tensor([prompt.tokens[: prompt.body_length][:MAX_TOKENS]])
    logits = model(input_ids=tokens).logits[0, first - 1 : -1]
    cross_entropy(logits, tokens[0, first:]).backward()
    paths = sorted({name.partition(".lora_")[0] for name in gradients})
    ordered = [gradients[f"{path}.lora_{end}.default.weight"].grad for path in paths for end in "AB"]
    values = torch.cat([gradient.flatten() for gradient in ordered]).double().numpy()
    bits = mixed_bits(len(values), PROJECTION.seed)
    sketch = np.zeros(PROJECTION.width)
    np.add.at(
        sketch, ((bits >> np.uint64(1)) % np.uint64(PROJECTION.width)).astype(int), values * (1 - 2.0 * (bits & 1))
    )
    return sketch / np.linalg.norm(sketch)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    folder = tiny.write_base(tmp_path / "base", request.param)
    return folder, tiny.write_adapter(tmp_path / "adapter", folder, kind="lora", rank=4)


def test_a_running_server_has_the_features_of_the_recipe_and_of_peft(family: tuple[Path, Path]) -> None:
    folder, adapter = family
    recipe_base = load(folder)
    chat = ChatFormat(recipe_base.tokenizer)
    prompts = [chat.render([{"role": "user", "content": text}]) for text in TEXTS]
    recipe = GradientFeature(GradientRunner(recipe_base, chat), adapter, PROJECTION)

    served_base = load(folder)
    runner = GradientRunner(served_base, chat)
    engine = Engine(served_base, chat, small_config(), Recorder())
    engine.start()
    try:
        server = GradientFeature(runner, adapter, PROJECTION)
        for prompt in prompts:
            mine = recipe.of(prompt)
            assert relative(server.of(prompt), mine) < 1e-5
            assert relative(mine, by_peft(folder, adapter, prompt, len(chat.opening))) < 1e-5
    finally:
        engine.stop()


@pytest.mark.parametrize("native", [False, True])
def test_in_bf16_the_packed_weights_give_the_features_of_plain_ones(
    tmp_path: Path, native: bool, kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processors that multiply bf16 numbers and on those where kernels do."""
    monkeypatch.setattr(products, "multiplies_bf16", lambda _: native)
    folder = tiny.write_base(tmp_path / "base")
    adapter = tiny.write_adapter(tmp_path / "adapter", folder, kind="lora", rank=4)
    plain, packed = load(folder, "bf16"), load(folder, "bf16")
    chat = ChatFormat(plain.tokenizer)
    runner = GradientRunner(packed, chat)
    engine = Engine(packed, chat, replace(small_config(), kernels=kernels), Recorder())
    engine.start()
    try:
        prompt = chat.render([{"role": "user", "content": TEXTS[1]}])
        one = GradientFeature(GradientRunner(plain, chat), adapter, PROJECTION).of(prompt)
        other = GradientFeature(runner, adapter, PROJECTION).of(prompt)
    finally:
        engine.stop()
    assert float(one @ other) > 0.999


def test_the_model_lies_in_memory_once(tmp_path: Path) -> None:
    """Every linear of the layers is lent by a fused product, and none has a weight of its own."""
    base = load(tiny.write_base(tmp_path))
    chat = ChatFormat(base.tokenizer)
    runner = GradientRunner(base, chat)
    Engine(base, chat, small_config(), Recorder())
    names = {name for name, _ in runner._model.named_parameters()}
    assert not any("proj" in name for name in names)


def test_the_engines_answers_stay_the_same_beside_gradients(tmp_path: Path) -> None:
    """A gradient pass leaves no hook behind."""
    folder = tiny.write_base(tmp_path / "base")
    adapter = tiny.write_adapter(tmp_path / "adapter", folder, kind="lora", rank=4)
    base = load(folder)
    chat = ChatFormat(base.tokenizer)
    prompt = chat.render([{"role": "user", "content": TEXTS[0]}])
    before = base.model(torch.tensor([prompt.tokens])).logits
    GradientFeature(GradientRunner(base, chat), adapter, PROJECTION).of(prompt)
    torch.testing.assert_close(base.model(torch.tensor([prompt.tokens])).logits, before)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_what_every_prompt_begins_with_does_not_count(tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / "base")
    adapter = tiny.write_adapter(tmp_path / "adapter", folder, kind="lora")
    base = load(folder)
    chat = ChatFormat(base.tokenizer)
    feature = GradientFeature(GradientRunner(base, chat), adapter, PROJECTION)
    rendered = chat.render([{"role": "user", "content": TEXTS[0]}])
    whole = Prompt(rendered.tokens, len(rendered.tokens))
    assert rendered.tokens[: len(chat.opening)] == chat.opening
    assert relative(feature.of(rendered), by_peft(folder, adapter, rendered, 1)) > 0.01
    assert relative(feature.of(whole), by_peft(folder, adapter, whole, len(chat.opening))) < 1e-5


def test_a_centroid_is_the_direction_of_the_mean() -> None:
    features = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    np.testing.assert_allclose(mean_direction(features), np.array([1, 2]) / 5**0.5, rtol=1e-6)


def test_one_token_and_activated_adapters_are_refused(tmp_path: Path) -> None:
    folder = tiny.write_base(tmp_path / "base")
    base = load(folder)
    chat = ChatFormat(base.tokenizer)
    runner = GradientRunner(base, chat)
    adapter = tiny.write_adapter(tmp_path / "adapter", folder, kind="lora")
    with pytest.raises(InvalidRequest, match="one token"):
        GradientFeature(runner, adapter, PROJECTION).of(Prompt((7,), 1))
    activated = tiny.write_adapter(tmp_path / "alora", folder, kind="alora", invocation=chat.generation_prompt)
    with pytest.raises(InvalidAdapter, match="must be a plain LoRA"):
        GradientFeature(runner, activated, PROJECTION)


@pytest.mark.parametrize("change", ["without a factor", "turned", "other modules"])
def test_an_adapter_that_does_not_fit_the_base_is_refused(tmp_path: Path, change: str) -> None:
    folder = tiny.write_base(tmp_path / "base")
    adapter = tiny.write_adapter(tmp_path / "adapter", folder, kind="lora", rank=4)
    base = load(folder)
    runner = GradientRunner(base, ChatFormat(base.tokenizer))
    file = adapter / WEIGHTS_FILE
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("gate_proj.lora_B.weight"))
    if change == "without a factor":
        del tensors[key]
    elif change == "turned":
        tensors[key] = tensors[key].T.contiguous()
    else:
        tensors = {name.replace("gate_proj", "gone_proj"): value for name, value in tensors.items()}
    save_file(tensors, file)
    with pytest.raises(InvalidAdapter, match="changed"):
        GradientFeature(runner, adapter, PROJECTION)
