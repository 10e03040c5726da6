"""How long does a decode step take, launched kernel by kernel or as a CUDA graph, against the reading of its bytes?

    python -m benchmarks.decode_step --label decode-step

The engine's own runner, in this process, without sessions, sampling or HTTP: so many sequences of --context tokens
compute one token each, all of the base or each through an expert of its own, and the highest logit of each is fetched.
Graphs need a GPU; elsewhere there is the first kind alone. The floor is what must be read at least, every weight once,
keys and values and the experts' terms once, over the rate at which this device copies a gibibyte (a CPU a sixteenth
of it; what is read and written counts, median of 20).

Prints medians over the steps; --label also writes LABEL.json to benchmarks/results/decode_step/.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import add_base, label, options, positive, progress_bar, write_record
from benchmarks.serving.statistics import Spread
from benchmarks.synthetic_experts import Shape, all_linears, publish_synthetic
from expert_store import ExpertStore, ManifestDraft
from server.engine.adapter_file import read_expert
from server.engine.kv_cache import BlockTable, Reservation
from server.engine.runner import Runner
from server.engine.scheduler import Segment, StepPlan
from server.engine.scheduler import Sequence as Tokens
from server.environment import describe_run
from server.model.base import Base, choose_device, load_base
from server.model.decode_graphs import Recorder, recorder_for
from server.model.native import Kernels, load_kernels
from server.model.paged_kv import KVGeometry

RESULTS = Path(__file__).parent / "results" / "decode_step"
_BLOCK_TOKENS = 16
_SLOT_RANK = 8
_WARM_UP = 3
_COPIED_BYTES = 1 << 30
_COPIED_BYTES_ON_CPU = 1 << 26  # many times its cache as well
_COPIES = 20


@dataclass(frozen=True)
class Measured:
    """Seconds a step. `floor` is that of its bytes; `graph` is None where there are none."""

    rows: int
    experts: bool
    launched: Spread
    graph: Spread | None
    floor: float


@dataclass(frozen=True)
class Memory:
    """What the engine has on the device: by the formula of docs/configuration.md, and what torch holds there more with
    another one of all graphs (None without a GPU)."""

    formula: int
    added: int | None

    def text(self) -> str:
        found = "" if self.added is None else f", {self.added / 1e9:.3f} GB held by torch with all graphs"
        return f"base, keys and values, slots: {self.formula / 1e9:.3f} GB{found}"


class Bench:
    """One model on the device, and as many experts as the largest step has rows."""

    def __init__(
        self,
        base: Base,
        *,
        num_rows: int,
        context: int,
        rank: int,
        kernels: Kernels | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._context = context
        self._num_tokens = base.num_tokens
        self._weight_bytes = sum(parameter.nbytes for parameter in base.model.parameters())  # before it is taken over
        self._num_rows = num_rows
        token_bytes = _geometry(base.model.config).bytes_per_token(base.dtype)
        self._kv_bytes = token_bytes * context
        self._rank = rank
        self.device = base.device
        with tempfile.TemporaryDirectory() as folder:
            drafts = {f"synthetic-{number}": ManifestDraft() for number in range(num_rows)}
            publish_synthetic(Path(folder), base.spec, Shape(rank, all_linears(base.spec)), drafts)
            self.runner = Runner(
                base,
                kv_memory_bytes=token_bytes * _BLOCK_TOKENS * num_rows * self._blocks,
                block_tokens=_BLOCK_TOKENS,
                num_slots=num_rows * self._slots,
                slot_rank=_SLOT_RANK,
                kernels=kernels,
                recorder=recorder,
            )
            catalog = ExpertStore.open(Path(folder)).catalog
            for number, expert in enumerate(catalog.experts.values()):
                (version,) = expert.versions.values()
                with torch.inference_mode():
                    self.runner.arenas.write(self._slots_of(number), read_expert(version, base.spec.linears))

    @property
    def _blocks(self) -> int:
        return -(-self._context // _BLOCK_TOKENS)

    @property
    def _slots(self) -> int:
        return -(-self._rank // _SLOT_RANK)

    def _slots_of(self, row: int) -> range:
        return range(row * self._slots, (row + 1) * self._slots)

    def lasting_bytes(self) -> int:
        """Base, keys and values, slots."""
        kv = self.runner.kv
        total: int = self._weight_bytes + sum(layer.nbytes for layer in kv.layers)
        return total + self._num_rows * self._slots * self.runner.arenas.slot_bytes

    def step_bytes(self, rows: int, *, experts: bool) -> int:
        """What a step reads at least."""
        terms = self.runner.arenas.slot_bytes * self._slots if experts else 0
        total: int = self._weight_bytes + rows * (self._kv_bytes + terms)
        return total

    def plan(self, rows: int, *, experts: bool) -> StepPlan:
        """The last token of each sequence."""
        segments = []
        for row in range(rows):
            blocks = list(range(row * self._blocks, (row + 1) * self._blocks))
            tokens = [(7 + 7919 * (i + row)) % self._num_tokens for i in range(self._context)]
            sequence = Tokens(tokens, BlockTable(Reservation(self._blocks), blocks), computed=self._context - 1)
            slots = self._slots_of(row) if experts else None
            segments.append(Segment(sequence, self._context - 1, self._context, slots))
        return StepPlan(segments)

    def seconds(self, rows: int, *, experts: bool, steps: int) -> Spread:
        plan = self.plan(rows, experts=experts)
        found = []
        with torch.inference_mode():
            for number in range(_WARM_UP + steps):
                started = time.perf_counter()
                self.runner.run(plan).all_WV.argmax(dim=-1).tolist()
                found += [time.perf_counter() - started] if number >= _WARM_UP else []
        return Spread.of(found)


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    measured, memory, bytes_per_second = _measure(given, console)
    console.print(table(measured, bytes_per_second, given))
    console.print(memory.text())
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.decode_step", *given.arguments]))
        rows = [asdict(row) for row in measured]
        told = {"bytes_per_second": bytes_per_second, "memory_bytes": asdict(memory), "seconds": rows}
        write_record(results, given.label, {**about, "options": options(given), **told})
    return 0


def _measure(given: argparse.Namespace, console: Console) -> tuple[list[Measured], Memory, float]:
    most = max(given.rows)

    kernels = load_kernels(given.cache) if choose_device(given.device).type == "cpu" else None

    def new_bench(recorder: Recorder | None = None) -> Bench:
        base = load_base(given.base, device=given.device, cache=given.cache, kernels=kernels)
        shape = {"num_rows": most, "context": given.context, "rank": given.rank}
        return Bench(base, **shape, kernels=kernels, recorder=recorder)

    launched = new_bench()
    before = taken(launched.device)
    recorder = recorder_for(launched.device)
    graphs = None if recorder is None else new_bench(recorder)
    bytes_per_second = copy_rate(launched.device)
    measured = []
    with progress_bar(console) as progress:
        task = progress.add_task("steps", total=2 * len(given.rows))
        for experts in (False, True):
            for rows in given.rows:
                seconds = launched.seconds(rows, experts=experts, steps=given.steps)
                graph = None if graphs is None else graphs.seconds(rows, experts=experts, steps=given.steps)
                floor = launched.step_bytes(rows, experts=experts) / bytes_per_second
                measured.append(Measured(rows, experts, seconds, graph, floor))
                progress.advance(task)
    ended = taken(launched.device)
    added = None if before is None or ended is None else ended - before
    return measured, Memory(launched.lasting_bytes(), added), bytes_per_second


def taken(device: torch.device) -> int | None:
    """Bytes of the device that torch holds once it has given back what it only keeps; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device)


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written."""
    num_bytes = _COPIED_BYTES if device.type == "cuda" else _COPIED_BYTES_ON_CPU
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    wait: Callable[[], None] = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    found = []
    for _ in range(_COPIES):
        wait()
        started = time.perf_counter()
        target.copy_(source)
        wait()
        found.append(time.perf_counter() - started)
    return 2 * num_bytes / median(found)


def table(measured: Sequence[Measured], bytes_per_second: float, given: argparse.Namespace) -> Table:
    """Milliseconds a step, with the lowest and highest, and how many times the floor."""
    title = (
        f"decode steps behind {given.context} tokens, experts of rank {given.rank}; {bytes_per_second / 1e9:.0f} GB/s"
    )
    shown = Table("sequences", "experts", "launched, ms", "graph, ms", "floor, ms", "tokens/s", title=title)
    for row in measured:
        best = row.graph or row.launched
        shown.add_row(
            str(row.rows),
            "one each" if row.experts else "none",
            row.launched.text(scale=1e3),
            "-" if row.graph is None else row.graph.text(scale=1e3),
            f"{row.floor * 1e3:.3f}",
            f"{row.rows / best.median:.0f}",
        )
    return shown


def _geometry(config: Any) -> KVGeometry:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return KVGeometry(config.num_hidden_layers, config.num_key_value_heads, width)


def _row_counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decode_step", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--rows", type=_row_counts, default=[1, 4, 16, 64], help="sequences a step; default 1,4,16,64")
    parser.add_argument("--context", type=positive, default=192, help="tokens of each; default %(default)s")
    parser.add_argument("--rank", type=positive, default=8, help="default %(default)s")
    parser.add_argument("--steps", type=positive, default=50, help="of each kind; default %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    add_base(parser)
    parser.add_argument("--label", type=label, help="write LABEL.json to benchmarks/results/decode_step/")
    return parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
