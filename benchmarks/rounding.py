"""What does rounding the base's weights cost? Each number format's next tokens against those of fp32. Times nothing.

    python -m benchmarks.rounding --label rounding

The reference is transformers in fp32, which answers held-out prompts, of the demo tasks and of no task, greedily. Each
format then reads those answers in the server's own steps. Behind every token its distribution of the next one is held
against the reference's: the Kullback-Leibler divergence, in nats, and whether the most likely token is the same. An
answer is the same where all of its tokens are.

Prints what came out; --label also writes LABEL.json to benchmarks/results/rounding/.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn.functional import kl_div

from benchmarks.command_line import add_base, label, options, positive, progress_bar, write_record
from server.engine.kv_cache import BlockTable, Reservation
from server.engine.runner import Runner
from server.engine.scheduler import Segment, StepPlan
from server.engine.scheduler import Sequence as Tokens
from server.environment import describe_run
from server.errors import BaseModelError
from server.model.base import Base, DtypeName, load_base
from server.model.chat import ChatFormat
from server.model.native import Kernels, load_kernels
from training.demo.tasks import TASKS, general_rows, rows

RESULTS = Path(__file__).parent / "results" / "rounding"
FORMATS: tuple[DtypeName, ...] = ("bf16", "int8")
_BLOCK_TOKENS = 16
_KV_BYTES = 1 << 28

# Legend: T tokens of an answer, V vocabulary.


@dataclass(frozen=True)
class Reference:
    """A prompt, its answer, and behind each token before one of the answer's the logarithm of the probabilities."""

    prompt: Sequence[int]
    answer: Sequence[int]
    logarithm_TV: Tensor


@dataclass(frozen=True)
class Difference:
    """Of one answer: a divergence for each of its tokens, and whether each is still the most likely one."""

    divergence: Sequence[float]
    same: Sequence[bool]


@dataclass(frozen=True)
class Cost:
    """Of one number format, over all answers."""

    dtype: str
    tokens: int
    answers: int
    mean_divergence: float
    p99_divergence: float
    same_tokens: float
    same_answers: float

    @classmethod
    def of(cls, dtype: str, differences: Sequence[Difference]) -> "Cost":
        divergences = [one for difference in differences for one in difference.divergence]
        same = [one for difference in differences for one in difference.same]
        return cls(
            dtype=dtype,
            tokens=len(same),
            answers=len(differences),
            mean_divergence=float(np.mean(divergences)),
            p99_divergence=float(np.percentile(divergences, 99)),
            same_tokens=float(np.mean(same)),
            same_answers=float(np.mean([all(difference.same) for difference in differences])),
        )


def main(arguments: Sequence[str] | None = None, *, results: Path = RESULTS) -> int:
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    texts = prompts(given.prompts, given.seed)
    with progress_bar(console) as progress:
        reference = load_base(given.base, dtype="fp32", device="cpu", cache=given.cache)
        task = progress.add_task("fp32", total=len(texts))
        answers = []
        for text in texts:
            answers.append(answered(reference, text, given.max_tokens))
            progress.advance(task)
        kernels = load_kernels(given.cache)
        try:
            costs = [cost(given, dtype, kernels, answers, progress) for dtype in given.dtypes]
        except BaseModelError as error:
            console.print(f"{error}", style="red", markup=False)
            return 1
    console.print(table(costs))
    if given.label is not None:
        about = describe_run(shlex.join(["python", "-m", "benchmarks.rounding", *given.arguments]))
        told = {"options": options(given), "costs": [asdict(one) for one in costs]}
        write_record(results, given.label, {**about, **told})
    return 0


def prompts(count: int, seed: int) -> list[str]:
    """So many of each demo task, and as many of no task, all held out."""
    of_tasks = [row.input for task in TASKS for row in rows(task, count, seed, held_out=True)]
    return of_tasks + [row.input for row in general_rows(count, seed, held_out=True)]


def answered(base: Base, text: str, max_tokens: int) -> Reference:
    """By transformers, greedily, to the end or to so many tokens."""
    prompt = ChatFormat(base.tokenizer).render([{"role": "user", "content": text}]).tokens
    inputs = torch.tensor([list(prompt)])
    model: Any = base.model
    with torch.inference_mode():
        found = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    answer = found.sequences[0, len(prompt) :].tolist()
    return Reference(prompt, answer, torch.cat(found.logits).float().log_softmax(dim=-1))


def cost(
    given: argparse.Namespace,
    dtype: DtypeName,
    kernels: Kernels | None,
    answers: Sequence[Reference],
    progress: Progress,
) -> Cost:
    """Of one format, with its base in memory meanwhile. Raises BaseModelError."""
    base = load_base(given.base, dtype=dtype, device="cpu", cache=given.cache, kernels=kernels)
    runner = Runner(
        base, kv_memory_bytes=_KV_BYTES, block_tokens=_BLOCK_TOKENS, num_slots=1, slot_rank=8, kernels=kernels
    )
    task = progress.add_task(dtype, total=len(answers))
    differences = []
    for answer in answers:
        logits_TV = torch.cat(list(read(runner, answer)))
        differences.append(difference(answer, logits_TV.float().log_softmax(dim=-1)))
        progress.advance(task)
    return Cost.of(dtype, differences)


def read(runner: Runner, reference: Reference) -> Iterator[Tensor]:
    """[1, V] logits behind the prompt, then behind each token of the answer but the last, a step each."""
    blocks = -(-(len(reference.prompt) + len(reference.answer)) // _BLOCK_TOKENS)
    sequence = Tokens(list(reference.prompt), BlockTable(Reservation(blocks), list(range(blocks))))
    for token in reference.answer:
        plan = StepPlan([Segment(sequence, sequence.computed, len(sequence.tokens), None)])
        with torch.inference_mode():
            yield runner.run(plan).all_WV
        sequence.computed = len(sequence.tokens)
        sequence.tokens.append(token)


def difference(reference: Reference, logarithm_TV: Tensor) -> Difference:
    divergence_TV = kl_div(logarithm_TV, reference.logarithm_TV, reduction="none", log_target=True)
    same_T = logarithm_TV.argmax(dim=-1) == torch.tensor(reference.answer)
    return Difference(divergence_TV.sum(dim=-1).tolist(), same_T.tolist())


def table(costs: Sequence[Cost]) -> Table:
    first = costs[0]
    shown = Table(
        "dtype", "divergence", "its p99", "same token", "same answer", title=f"{first.answers} answers against fp32"
    )
    for one in costs:
        shown.add_row(
            one.dtype,
            f"{one.mean_divergence:.5f}",
            f"{one.p99_divergence:.4f}",
            f"{one.same_tokens:.1%}",
            f"{one.same_answers:.1%}",
        )
    return shown


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rounding", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--prompts", type=positive, default=8, help="of each kind; default %(default)s")
    parser.add_argument("--max-tokens", type=positive, default=32, help="of an answer; default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts; default %(default)s")
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=get_args(DtypeName),
        default=FORMATS,
        help=f"to try; default {' '.join(FORMATS)}",
    )
    add_base(parser)
    parser.add_argument("--label", type=label, help="write LABEL.json to benchmarks/results/rounding/")
    return parser.parse_args(arguments, argparse.Namespace(arguments=list(arguments)))


if __name__ == "__main__":
    sys.exit(main())
