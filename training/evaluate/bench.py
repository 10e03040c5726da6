"""Runs methods over settings: trains what is missing, asks, scores. Knows no command line and no report."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import mean, median
from typing import Protocol

from training.evaluate.adapters import GatedLora, Guarded, SeeExpert, TunedLora
from training.evaluate.answerers import Answer, Answerer, Chain, OutsideTheServer, Picked
from training.evaluate.asking import Questioner
from training.evaluate.methods import METHODS, Stages
from training.evaluate.scores import (
    average_result,
    backward_transfer,
    confusion,
    curve,
    exact,
    rouge_l,
)
from training.evaluate.stream import GENERAL, Sample, Setting
from training.evaluate.units import Unit, Workshop

BASE = "base"
Scores = list[list[float] | None]


@dataclass(frozen=True)
class Routing:
    """Who answered, after the last task; of a mixture, the expert with the largest weight.

    `fallback`: shares of strangers' prompts left to the base, by their source; None where that cannot happen.
    """

    columns: list[str]
    confusion: list[list[int]]
    accuracy: float
    fallback: dict[str, float] | None
    fallback_unseen_tasks: float | None


@dataclass(frozen=True)
class Costs:
    """Of single requests after the last task."""

    first_token_ms: float
    total_ms: float
    computed_tokens: float
    prompt_tokens: float


@dataclass(frozen=True)
class Run:
    """A method in a setting. Scores are percent; `rouge[t][i]` is task i after task t."""

    method: str
    prompts: str
    order: int
    seed: int
    tasks: list[str]
    rouge: Scores
    exact: Scores
    ar: float
    bwt: float | None
    curve: list[float | None]
    exact_ar: float
    exact_bwt: float | None
    training_seconds: float
    routing: Routing | None
    costs: Costs | None


class Progress(Protocol):
    """Told of the work as it goes on."""

    def begin(self, what: str, total: int) -> None: ...

    def advance(self, amount: int) -> None: ...


@dataclass(frozen=True)
class Course:
    """One method in one setting, laid out: who answers after each task."""

    method: str
    setting: Setting
    stages: Stages

    @property
    def final(self) -> Answerer:
        last = self.stages[-1]
        assert last is not None, f"{self.method} answers nothing after the last task. This is a bug."
        return last

    @property
    def units(self) -> list[Unit]:
        return [unit for stage in self.stages if stage is not None for unit in stage.units]

    @property
    def trained(self) -> list[Unit]:
        """What its training is; answers that a unit gave beside the server are none of it."""
        return list(self.final.answers.parents) if isinstance(self.final, OutsideTheServer) else self.units

    def seen(self, stage: int) -> list[Sample]:
        """What is asked after this task."""
        return [sample for task in self.setting.tasks[: stage + 1] for sample in task.held_out]


def lay_out(methods: Sequence[str], settings: Iterable[Setting]) -> list[Course]:
    return [Course(name, setting, METHODS[name].stages(setting)) for setting in settings for name in methods]


def train(courses: Sequence[Course], workshop: Workshop, executor: Executor, progress: Progress) -> None:
    """Makes every unit that is missing."""
    units = workshop.with_parents([unit for course in courses for unit in course.units])
    progress.begin("training", sum(unit.cost for unit in units))
    progress.advance(sum(unit.cost for unit in units if workshop.is_done(unit)))
    workshop.run(units, executor, on_done=lambda unit: progress.advance(unit.cost))


def ask(
    courses: Sequence[Course],
    workshop: Workshop,
    serve: Callable[[bool], AbstractContextManager[Questioner]],
    progress: Progress,
) -> list[Run]:
    """Has every row answered after every task, then takes the costs; `serve(prefix_cache)` gives a server for each."""
    with serve(True) as asking:
        progress.begin("asking", sum(len(course.seen(s)) for course in courses for s in _looked_at(course)))
        scored = [_answers(course, asking, progress) for course in courses]
        routings = [
            _routing(course, asking, workshop, found[-1]) for course, found in zip(courses, scored, strict=True)
        ]
    with serve(False) as asking:
        progress.begin("timing", len(courses))
        costs = [_costs(course, asking, progress) for course in courses]
    pieces = zip(courses, scored, routings, costs, strict=True)
    return [_run(course, workshop, found, routing, cost) for course, found, routing, cost in pieces]


def _looked_at(course: Course) -> list[int]:
    return [place for place, stage in enumerate(course.stages) if stage is not None]


def _answers(course: Course, asking: Questioner, progress: Progress) -> list[list[Answer] | None]:
    """Of each stage, in the order of `Course.seen`."""
    found: list[list[Answer] | None] = []
    for place, stage in enumerate(course.stages):
        if stage is None:
            found.append(None)
            continue
        samples = course.seen(place)
        found.append(asking.answers(stage, samples, answer_tokens=course.setting.budget.answer_tokens))
        progress.advance(len(samples))
    return found


def _score(course: Course, found: Sequence[list[Answer] | None], judge: Callable[[str, str], float]) -> Scores:
    scores: Scores = []
    for place, answers in enumerate(found):
        if answers is None:
            scores.append(None)
            continue
        by_task: dict[str, list[float]] = {}
        for sample, answer in zip(course.seen(place), answers, strict=True):
            by_task.setdefault(sample.task, []).append(judge(answer.text.strip(), sample.output))
        scores.append([mean(values) for values in by_task.values()])
    return scores


def _routing(course: Course, asking: Questioner, workshop: Workshop, answers: list[Answer] | None) -> Routing | None:
    if not METHODS[course.method].routed:
        return None
    assert answers is not None, "every method is looked at after the last task. This is a bug."
    names = _task_of_key(course.final, workshop)
    columns = [*(task.name for task in course.setting.tasks), BASE]
    samples = course.seen(len(course.setting.tasks) - 1)
    answered_by = [BASE if answer.expert is None else names[answer.expert] for answer in answers]
    right = [by == sample.task for by, sample in zip(answered_by, samples, strict=True)]
    table = confusion([sample.task for sample in samples], answered_by, columns)
    fallback = _fallback(course, asking) if isinstance(course.final, Chain) else None
    unseen = None
    if fallback is not None and (shares := [share for source, share in fallback.items() if source != GENERAL]):
        unseen = mean(shares)
    return Routing(columns, table, 100.0 * mean(right), fallback, unseen)


def _fallback(course: Course, asking: Questioner) -> dict[str, float]:
    """In percent, by the task the strangers come from."""
    strangers = course.setting.strangers
    by_source: dict[str, list[bool]] = {}
    for sample, expert in zip(strangers, asking.routes(course.final, strangers), strict=True):
        by_source.setdefault(sample.task, []).append(expert is None)
    return {source: 100.0 * mean(hits) for source, hits in by_source.items()}


def _costs(course: Course, asking: Questioner, progress: Progress) -> Costs | None:
    """None where what routes or answers is not played by the server: it would cost nothing there."""
    progress.advance(1)
    if isinstance(course.final, OutsideTheServer | Picked):
        return None
    budget = course.setting.budget
    samples = [sample for task in course.setting.tasks for sample in task.held_out[: budget.cost_rows]]
    found = asking.costs(course.final, samples, answer_tokens=budget.answer_tokens)
    return Costs(
        first_token_ms=median(cost.first_token_ms for cost in found),
        total_ms=median(cost.total_ms for cost in found),
        computed_tokens=mean(cost.computed_tokens for cost in found),
        prompt_tokens=mean(cost.prompt_tokens for cost in found),
    )


def _run(
    course: Course,
    workshop: Workshop,
    answers: Sequence[list[Answer] | None],
    routing: Routing | None,
    costs: Costs | None,
) -> Run:
    rouge, matches = (_score(course, answers, judge) for judge in (rouge_l, exact))
    units = workshop.with_parents(course.trained)
    return Run(
        method=course.method,
        prompts=course.setting.prompts,
        order=course.setting.order,
        seed=course.setting.seed,
        tasks=[task.name for task in course.setting.tasks],
        rouge=rouge,
        exact=matches,
        ar=average_result(rouge),
        bwt=backward_transfer(rouge),
        curve=curve(rouge),
        exact_ar=average_result(matches),
        exact_bwt=backward_transfer(matches),
        training_seconds=sum(workshop.seconds(unit) for unit in units),
        routing=routing,
        costs=costs,
    )


def _task_of_key(answerer: Answerer, workshop: Workshop) -> dict[str, str]:
    tasks = {}
    for unit in answerer.units:
        if isinstance(unit, SeeExpert | GatedLora | Guarded | TunedLora):
            tasks[workshop.key(unit)] = unit.label if isinstance(unit, TunedLora) else unit.task
    return tasks
