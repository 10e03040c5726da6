"""The router recipe: learns on a small memory how to weigh frozen experts in every layer (L2R, arXiv 2408.09053).

    train   g = sigmoid((W_l h_l + b_l + log u - log(1 - u)) / tau), u ~ U(0, 1)      serve   g = sigmoid(W_l h_l + b_l)
    weight = g / sum g        loss: cross entropy of the answer through base + sum of weight_e * s_e * B_e A_e

Only W and b are trained; base and experts stay as they are. Choices of ours: h_l is the mean over the prompt's tokens
of the state that enters layer l in the base, computed once; tau falls evenly from 1.0 to 0.5; states are standardised
while training, which is folded into W and b afterwards; softmax gates have neither noise nor tau. Knows no terminal.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import set_seed

from expert_store import (
    MANIFEST_FILE,
    ROUTER_FILE,
    Catalog,
    ExpertVersion,
    Gates,
    RoutedExpert,
    RouterDraft,
    Training,
)
from server.model.base import Base
from server.model.chat import ChatFormat
from server.model.states import mean_states
from training.composed import Board, compose
from training.data import Example, digest_files, digest_roles, refuse_seen, split_holdout
from training.errors import InvalidRun
from training.gate_network import RouterRunner, RouterSteps, TrainedGates
from training.loop import LoopOptions, run_plan
from training.memory import Memory, MemoryEncoder, read_memory, refuse_silent_experts, silent_experts
from training.output import open_folder, remove_checkpoints
from training.progress import RunObserver


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """What the recipe can be told. Everything here is recorded in the manifest."""

    gates: Gates = "sigmoid"
    epochs: int = 4
    learning_rate: float = 2e-3
    warmup: float = 0.05
    batch_size: int = 8
    first_tau: float = 1.0
    last_tau: float = 0.5
    holdout: float = 0.1
    max_tokens: int | None = None  # None: the base's context
    seed: int = 0


@dataclass(frozen=True)
class RouterData:
    """The memory over these experts, in the router's order, and held-out rows where they have a file of their own."""

    experts: tuple[ExpertVersion, ...]
    memory: Memory
    held_out: Memory | None

    @property
    def roles(self) -> dict[str, list[Path]]:
        """The files by what they are for."""
        return {
            "memory": [self.memory.file.path],
            "held_out": [] if self.held_out is None else [self.held_out.file.path],
        }

    @property
    def paths(self) -> list[Path]:
        return [path for paths in self.roles.values() for path in paths]

    @property
    def measured(self) -> Memory:
        """What held-out rows come from."""
        return self.held_out or self.memory


@dataclass(frozen=True)
class TrainedRouter:
    """What came of a run, in `folder`."""

    folder: Path
    draft: RouterDraft


def choose_experts(catalog: Catalog, refs: Sequence[str]) -> tuple[ExpertVersion, ...]:
    """Those named, or every live plain LoRA of the store. Raises InvalidRun, UnknownExpert, UnknownVersion."""
    if refs:
        experts = [catalog.resolve(ref) for ref in refs]
        activated = [expert.ref for expert in experts if expert.kind != "lora"]
        if activated:
            raise InvalidRun(
                f"--expert {', '.join(activated)}: activated experts wake up behind the prompt, and only plain LoRAs "
                "can be composed: leave them out, or train them with --kind lora"
            )
    else:
        live = [expert.live for _, expert in sorted(catalog.experts.items())]
        experts = [version for version in live if version is not None and version.kind == "lora"]
    if len({expert.name for expert in experts}) < max(2, len(experts)):
        raise InvalidRun(
            f"a router chooses between two plain LoRAs at least, each named once; here are {len(experts)}: "
            f"{', '.join(expert.ref for expert in experts) or 'none'}"
        )
    return tuple(experts)


def read_router_data(experts: tuple[ExpertVersion, ...], memory: Path, held_out: Path | None) -> RouterData:
    """Raises InvalidData for the first file that is not sound, InvalidRun where an expert has no row."""
    names = [expert.name for expert in experts]
    rows = read_memory(memory, names)
    refuse_silent_experts(rows, names)
    measured = read_memory(held_out, names) if held_out else None
    if measured is not None:
        refuse_seen(measured.file, [rows.file])
    return RouterData(experts, rows, measured)


def train_router(
    base: Base,
    data: RouterData,
    options: RouterOptions,
    *,
    command: str | None = None,
    out: Path,
    resume: bool,
    observer: RunObserver,
) -> TrainedRouter:
    """Trains a router and leaves router.safetensors and manifest.json in `out`. `base.model` is consumed.

    Raises InvalidData, InvalidRun, Diverged.
    """
    _refuse_foreign_experts(base, data.experts)
    kept, held_out = _examples(base, data, options)
    identity = {
        "base": base.spec.fingerprint,
        "data": digest_roles(data.roles),
        "experts": [expert.digest for expert in data.experts],
        "options": asdict(options),
    }
    checkpoints = open_folder(out, identity, resume=resume)
    set_seed(options.seed)

    states_PLD = mean_states(base.model, [e.tokens[: e.frozen_length] for e in [*kept, *held_out]])
    board = Board()
    compose(base.model, [expert.folder for expert in data.experts], board)
    network = TrainedGates(len(data.experts), states_PLD[: len(kept)], options.gates).to(base.device)
    runner = RouterRunner(base.model, network, board, states_PLD.to(base.device), pad=base.tokenizer.eos_token_id)
    steps = RouterSteps(
        kept, runner, options.batch_size, options.epochs, options.seed, options.first_tau, options.last_tau
    )
    loop = LoopOptions.of(options, len(steps))
    run_plan(network, runner, steps, loop, checkpoints=checkpoints, resume=resume, observer=observer)

    quality = _quality(runner, held_out, first=len(kept), experts=[data.measured.expert_of[e.row.id] for e in held_out])
    draft = _draft(base, data, options, command, num_rows=len(kept), network=network, quality=quality)
    (out / ROUTER_FILE).write_bytes(network.folded().to_bytes())
    (out / MANIFEST_FILE).write_text(draft.model_dump_json(indent=2) + "\n")
    remove_checkpoints(checkpoints)
    return TrainedRouter(out, draft)


def _refuse_foreign_experts(base: Base, experts: Sequence[ExpertVersion]) -> None:
    foreign = [e.ref for e in experts if e.manifest.base_fingerprint != base.spec.fingerprint]
    if foreign:
        raise InvalidRun(f"{', '.join(foreign)}: trained on another base than {base.source}: name theirs with --base")


def _examples(base: Base, data: RouterData, options: RouterOptions) -> tuple[list[Example], list[Example]]:
    """(to train on, held out)."""
    if base.tokenizer.eos_token_id is None:
        raise InvalidRun(f"the tokenizer of {base.source} names no end-of-sequence token, which every target ends with")
    limit = min(options.max_tokens or base.max_context, base.max_context)
    chat = ChatFormat(base.tokenizer)
    encoder = MemoryEncoder(chat, data.experts, eos=base.tokenizer.eos_token_id, max_tokens=limit)
    examples = encoder.encode(data.memory.file)
    if data.held_out is not None:
        return examples, encoder.encode(data.held_out.file)
    kept, held_out = split_holdout(examples, share=options.holdout, at_most=128, seed=options.seed)
    names = [expert.name for expert in data.experts]
    if silent := silent_experts(data.memory, names, [example.row.id for example in kept]):
        raise InvalidRun(
            f"all rows of {', '.join(silent)} were held out: add some to {data.memory.file.path}, or hold out others "
            "with --seed, or those of another file with --eval-memory"
        )
    return kept, held_out


def _quality(
    runner: RouterRunner, held_out: Sequence[Example], *, first: int, experts: Sequence[int]
) -> dict[str, float]:
    """Mean loss a token of the held-out answers under the router, an even mixture and the right expert alone, and how
    often the router's leading expert is the right one."""
    indices = list(range(first, first + len(held_out)))
    weight_PLE = runner.weights(indices)
    oracle_PLE = np.zeros_like(weight_PLE)
    oracle_PLE[np.arange(len(experts)), :, experts] = 1
    even_PLE = np.full_like(weight_PLE, 1 / weight_PLE.shape[2])
    return {
        "loss": runner.mean_loss(held_out, weight_PLE),
        "loss_uniform": runner.mean_loss(held_out, even_PLE),
        "loss_oracle": runner.mean_loss(held_out, oracle_PLE),
        "leader_accuracy": float((weight_PLE.mean(axis=1).argmax(axis=1) == np.array(experts)).mean()),
        "held_out": len(held_out),
    }


def _draft(
    base: Base,
    data: RouterData,
    options: RouterOptions,
    command: str | None,
    *,
    num_rows: int,
    network: TrainedGates,
    quality: dict[str, float],
) -> RouterDraft:
    told = {k: v for k, v in asdict(options).items() if k not in ("seed", "epochs") and v is not None}
    num_layers, num_experts, width = network.weight_LED.shape
    assert num_experts == len(data.experts), "a row of the network for each expert. This is a bug."
    return RouterDraft(
        base_fingerprint=base.spec.fingerprint,
        gates=options.gates,
        experts=tuple(RoutedExpert(name=e.name, version=e.version, digest=e.digest) for e in data.experts),
        num_layers=num_layers,
        width=width,
        training=Training(
            recipe="router",
            seed=options.seed,
            data_digest=digest_files(data.paths),
            rows=num_rows,
            epochs=options.epochs,
            command=command,
            parameters=told,
        ),
        quality=quality,
    )
