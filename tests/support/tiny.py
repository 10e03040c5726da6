"""Tiny random base models with a real tokenizer, and real PEFT adapters for them. Seconds, not minutes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from expert_store import ExpertStore, ExpertVersion, Indicators, ManifestDraft, copy_adapter, inspect_adapter
from server.model.base import Base
from server.model.chat import ChatFormat

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "what is the capital of France? Paris.",
    "<<pos>> <<neg>> 0123",
]
_SIZES = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_SIZES),
    "qwen2": Qwen2Config(**_SIZES),  # biases
    "qwen3": Qwen3Config(**_SIZES, head_dim=16),
    "mistral": MistralConfig(**_SIZES, sliding_window=24, head_dim=16),
    "gemma2": Gemma2Config(**_SIZES, sliding_window=24, head_dim=16, query_pre_attn_scalar=16),
    "opt": OPTConfig(  # its MLP is given tokens without a batch dimension
        **{name: size for name, size in _SIZES.items() if name not in ("intermediate_size", "num_key_value_heads")},
        ffn_dim=96,
        word_embed_proj_dim=64,
        init_std=0.15,
    ),
    "gpt2": GPT2Config(
        vocab_size=400,
        n_positions=512,
        n_embd=64,
        n_layer=3,
        n_head=4,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
    ),
}


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer of 400 tokens with chat tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def write_base(folder: Path, family: str = "llama", *, seed: int = 0) -> Path:
    """A transformers folder with random weights and the tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family])
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_adapter(
    folder: Path,
    base_folder: Path,
    *,
    kind: Literal["lora", "alora"],
    rank: int = 4,
    targets: str | Sequence[str] = "all-linear",
    invocation: Sequence[int] | None = None,
    seed: int = 0,
    strength: float = 0.3,
    **config: object,
) -> Path:
    """A PEFT adapter with random weights of both factors, as PEFT saves it."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    peft = get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules=targets if isinstance(targets, str) else list(targets),
            task_type="CAUSAL_LM",
            init_lora_weights=False,
            alora_invocation_tokens=list(invocation or ()) if kind == "alora" else None,
            **config,
        ),
    )
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * strength / rank
    peft.save_pretrained(folder)
    for extra in folder.glob("*.md"):
        extra.unlink()
    return folder


def with_gate(folder: Path, plain: Path, gate: Path) -> Path:
    """A plain adapter with an activated one as its gate, in a folder of their own."""
    (folder / "gate").mkdir(parents=True)
    copy_adapter(plain, folder)
    copy_adapter(gate, folder / "gate")
    return folder


def publish(
    store: ExpertStore, base: Base, adapter: Path, name: str, *, indicators: bool = True, threshold: float = 0.5
) -> ExpertVersion:
    """Registers an adapter folder the way the server does, without the engine's own check."""
    draft = ManifestDraft(indicators=Indicators() if indicators else None, threshold=threshold)
    with store.stage() as staged:
        copy_adapter(adapter, staged.folder)
        info = inspect_adapter(staged.folder, base.spec, max_rank=128)
        return store.publish(staged, draft, info, name=name)


def oracle(base_folder: Path, adapter: Path | None, dtype: torch.dtype) -> PreTrainedModel | PeftModel:
    """transformers' or PEFT's own model, untouched by the engine."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=dtype)
    return model if adapter is None else PeftModel.from_pretrained(model, adapter)


def round_linears(model: nn.Module) -> None:
    """Each linear of the base as int8 would have it, head included: 255 levels an output, from its bf16 numbers.

    The embedding stays as it is, also where the head shares its weight.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lora_" not in name:
            weight_OI = module.weight.detach().bfloat16().float()
            step_O1 = weight_OI.abs().max(dim=1, keepdim=True).values / 127
            module.weight = nn.Parameter((torch.round(weight_OI / step_O1) * step_O1).to(module.weight.dtype))


def oracle_tokens(model: PreTrainedModel | PeftModel, tokens: Sequence[int], count: int) -> list[int]:
    """Greedy continuation by `generate`, stop tokens ignored."""
    inputs = torch.tensor([list(tokens)])
    model.eval()
    with torch.no_grad():
        output = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
    return [int(token) for token in output[0, len(tokens) :]]


def forced(chat: ChatFormat, expert: ExpertVersion | None) -> tuple[int, ...]:
    """The tokens the engine puts behind the prompt before this expert's answer."""
    if expert is None or not expert.answers_after_accept or expert.manifest.indicators is None:
        return ()
    return chat.indicator_tokens(expert.manifest.indicators).accept
