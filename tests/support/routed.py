"""Two plain LoRAs that each learned a task of their own on a tiny base, and a memory of both for routers."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from expert_store import ExpertStore, ExpertVersion
from server.model.base import Base, load_base
from server.model.chat import ChatFormat
from tests.support import tiny

ANSWERS = {"dogs": "lazy dogs 1", "foxes": "brown fox 2"}
PROMPTS = {"dogs": "the lazy dog {}", "foxes": "quick brown fox {}"}
_STEPS = 60


@dataclass(frozen=True)
class Routed:
    """Base folder and store; `experts` in the order of their names, which is the router's too."""

    base_folder: Path
    store_folder: Path
    experts: tuple[ExpertVersion, ...]
    memory: Path

    def base(self, cache: Path) -> Base:
        """A fresh one: recipes and engines consume theirs."""
        return load_base(str(self.base_folder), dtype="fp32", device="cpu", cache=cache)


def make_routed(root: Path) -> Routed:
    base_folder = tiny.write_base(root / "base")
    store = ExpertStore.open(root / "store")
    base = load_base(str(base_folder), dtype="fp32", device="cpu", cache=root / "cache")
    experts = []
    for seed, name in enumerate(sorted(ANSWERS)):
        adapter = _train(root / name, base_folder, name, seed)
        experts.append(tiny.publish(store, base, adapter, name, indicators=False))
    memory = root / "memory.jsonl"
    write_memory(memory, range(12))
    return Routed(base_folder, root / "store", tuple(experts), memory)


def write_memory(path: Path, numbers: range) -> None:
    rows = [
        {"id": f"{name}-{i}", "expert": name, "input": PROMPTS[name].format(i), "output": ANSWERS[name]}
        for i in numbers
        for name in sorted(ANSWERS)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))


def _train(folder: Path, base_folder: Path, name: str, seed: int) -> Path:
    """A LoRA that gives the task's answer to whatever prompt: which of the two is right, only a router can know."""
    torch.manual_seed(seed)
    base = load_base(str(base_folder), dtype="fp32", device="cpu", cache=folder)
    chat = ChatFormat(base.tokenizer)
    model = get_peft_model(
        base.model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    answer = [*chat.encode(ANSWERS[name]), base.tokenizer.eos_token_id]
    prompts = [
        chat.render([{"role": "user", "content": text.format(i)}]) for text in PROMPTS.values() for i in range(8)
    ]
    for step in range(_STEPS):
        prompt = prompts[step % len(prompts)]
        tokens = torch.tensor([[*prompt.tokens, *answer]])
        labels = torch.tensor([[-100] * len(prompt.tokens) + answer])
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    for extra in folder.glob("*.md"):
        extra.unlink()
    return folder
