"""How much faster than PEFT's own mixed batch? The same adapters, prompts and lengths, in turns.

    python -m benchmarks.peft_batch --label peft-batch

PEFT runs in this process: `generate(adapter_names=[...])` over one padded batch, each row with its own LoRA adapter,
greedy, end of text ignored, in the number format of the base. The server is one of its own, asked over HTTP by
benchmarks.serving's load, all requests at once. Both have random adapters on all linear layers and prompts of random
words, new in every round and the same for both. The first round of each warms up and is left out; then they take turns.

Rounds are repeated as long as another one fits into --minutes. Prints medians; --label also writes LABEL.json to
benchmarks/results/peft_batch/.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table

from benchmarks.command_line import add_base, label, options, positive, progress_bar, two_or_more, write_record
from benchmarks.serving.load import Round, run_round
from benchmarks.serving.statistics import Spread, failures
from benchmarks.serving.work import Job, Work, jobs
from benchmarks.synthetic_experts import Shape, all_linears, publish_synthetic
from benchmarks.turns import turns
from expert_store import ManifestDraft
from server.environment import describe_run
from server.model.base import Base, load_base
from server.own_server import own_server

RESULTS = Path(__file__).parent / "results" / "peft_batch"


@dataclass(frozen=True)
class Turn:
    """One round of each, on the same work. Output tokens a second."""

    peft: float
    server: float


class PeftBatch:
    """transformers' model with all adapters loaded side by side. Takes over the base's model and tokenizer."""

    def __init__(self, base: Base, adapters: Mapping[str, Path]) -> None:
        (first, folder), *others = adapters.items()
        self._tokenizer = base.tokenizer
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        # Without the cast PEFT would compute bf16 adapters in fp32.
        self._model = PeftModel.from_pretrained(base.model, folder, adapter_name=first, autocast_adapter_dtype=False)
        for name, folder in others:
            self._model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=False)
        self._model.train(False)

    def generate(self, todo: Sequence[Job]) -> torch.Tensor:
        """New tokens [jobs, max_tokens], row by row those of the job's own adapter. All jobs are of one length."""
        prompts = self._tokenizer(
            [job.prompt for job in todo], return_tensors="pt", padding=True, padding_side="left"
        ).to(self._model.device)
        [max_tokens] = {job.max_tokens for job in todo}
        with torch.inference_mode():
            whole: torch.Tensor = self._model.generate(  # type: ignore[no-untyped-call]
                **prompts,
                adapter_names=[job.model for job in todo],
                do_sample=False,
                min_new_tokens=max_tokens,
                max_new_tokens=max_tokens,
                eos_token_id=None,
                pad_token_id=self._tokenizer.pad_token_id,
            )
        return whole[:, prompts["input_ids"].shape[1] :]

    def tokens_per_second(self, todo: Sequence[Job]) -> float:
        """Tokenizing, prefill and decoding, from the first to the last token of all."""
        started = time.perf_counter()
        tokens = self.generate(todo)
        return tokens.numel() / (time.perf_counter() - started)


class RequestsFailed(Exception):
    """The server left requests without an answer of full length."""


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    """The exit status: 1 where a request failed."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    base = load_base(given.base, cache=given.cache)
    names = [f"synthetic-{number}" for number in range(given.adapters)]
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        drafts = {name: ManifestDraft() for name in names}
        publish_synthetic(store, base.spec, Shape(given.rank, all_linears(base.spec)), drafts)
        peft = PeftBatch(base, {name: store / "experts" / name / "1" for name in names})
        with own_server(Path(folder), *_flags(given)) as server:
            try:
                measured = _measure(peft, server.url, names, given, console)
            except RequestsFailed as error:
                console.print(str(error), style="red", markup=False)
                return 1
    console.print(table(measured, given))
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.peft_batch", *given.arguments]))
        write_record(results, given.label, record(measured, {**about, "options": options(given)}))
    return 0


def _measure(
    peft: PeftBatch, url: str, names: Sequence[str], given: argparse.Namespace, console: Console
) -> list[Turn]:
    """Raises RequestsFailed."""
    work = Work(
        num_requests=given.requests,
        prompt_words=given.prompt_words,
        max_tokens=given.max_tokens,
        popularity="distinct",
        template="{}",
        seed=given.seed,
    )
    with progress_bar(console) as progress:
        task = progress.add_task("rounds", total=given.rounds + 1)
        return take_turns(
            lambda number: peft.tokens_per_second(jobs(work, names, number)),
            lambda number: server_tokens_per_second(url, jobs(work, names, number)),
            num_rounds=given.rounds,
            minutes=given.minutes,
            on_turn=lambda: progress.advance(task),
        )


def take_turns(
    peft: Callable[[int], float],
    server: Callable[[int], float],
    *,
    num_rounds: int,
    minutes: float,
    on_turn: Callable[[], None],
) -> list[Turn]:
    """Rounds by their number, without the one that warms up; each side is the first in every other round."""
    measured = []
    for number in turns(num_rounds + 1, minutes=minutes, at_least=2):
        if number % 2 == 0:
            ours = server(number)
            turn = Turn(peft(number), ours)
        else:
            turn = Turn(peft(number), server(number))
        measured.extend([turn] if number > 0 else [])
        on_turn()
    return measured


def server_tokens_per_second(url: str, todo: Sequence[Job]) -> float:
    """All requests at once, from sending the first to the end of the last. Raises RequestsFailed."""
    ran: Round = asyncio.run(run_round(url, todo, len(todo), lambda: None))
    failed = failures([ran])
    if failed:
        raise RequestsFailed(f"the server failed requests: {dict(failed)}")
    return sum(job.max_tokens for job in todo) / ran.seconds


def table(measured: Sequence[Turn], given: argparse.Namespace) -> Table:
    """Medians over the rounds with the lowest and highest."""
    work = f"{given.requests} prompts of {given.prompt_words} words, {given.max_tokens} tokens each"
    title = f"{work}, {given.adapters} adapters of rank {given.rank}"
    shown = Table("", "output tokens/s", title=title)
    for name, spread in _spreads(measured).items():
        shown.add_row(name, spread.text(digits=2 if name == "ratio" else 1))
    return shown


def record(measured: Sequence[Turn], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured."""
    over = {name: asdict(spread) for name, spread in _spreads(measured).items()}
    return {**about, "rounds": [asdict(turn) for turn in measured], "tokens_per_second": over}


def _spreads(measured: Sequence[Turn]) -> dict[str, Spread]:
    """Of both sides, and of the server's rate over PEFT's, round by round."""
    return {
        "peft": Spread.of([turn.peft for turn in measured]),
        "server": Spread.of([turn.server for turn in measured]),
        "ratio": Spread.of([turn.server / turn.peft for turn in measured]),
    }


def _flags(given: argparse.Namespace) -> list[str]:
    return ["--base", given.base, "--cache", str(given.cache), "--no-demo"]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peft_batch", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument(
        "--adapters", type=positive, default=8, help="dealt to the prompts in turn; default %(default)s"
    )
    parser.add_argument("--rank", type=positive, default=8, help="default %(default)s")
    parser.add_argument("--requests", type=positive, default=16, help="in the batch; default %(default)s")
    parser.add_argument("--prompt-words", type=positive, default=100, help="default %(default)s")
    parser.add_argument("--max-tokens", type=two_or_more, default=64, help="at least 2; default %(default)s")
    parser.add_argument("--rounds", type=positive, default=5, help="beside the one that warms up; default %(default)s")
    parser.add_argument("--minutes", type=float, default=10, help="for all rounds; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; default %(default)s")
    add_base(parser)
    parser.add_argument("--label", type=label, help="write LABEL.json to benchmarks/results/peft_batch/")
    return parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
