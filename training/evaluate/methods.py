"""The methods as they meet the stream: who answers after each task, and what has to be trained for it. Trains nothing.

A method is a function from a setting to one answerer for every task of the stream, None where that stage is not
looked at; a new one is a function more and a line in METHODS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from training.evaluate.adapters import L2, Averaged, Ewc, FisherOf, SeeExpert, TunedLora
from training.evaluate.answerers import Answerer, ByTask, Chain, OneAdapter, OutsideTheServer, Picked, TheBase
from training.evaluate.merging import Merged
from training.evaluate.routers import ArrowAnswers, Picks, PromptFeatures
from training.evaluate.stream import Sample, Setting

Stages = Sequence[Answerer | None]

FISHER_ROWS = 40
EWC_STRENGTH = 100.0
L2_STRENGTH = 0.01
TASK_ARITHMETIC_SCALE = 0.4
TIES_DENSITY = 0.2
WISE_FT_SHARE = 0.5


@dataclass(frozen=True)
class Method:
    """`routed`: it chooses an expert for each row, so that its choices can be right or wrong."""

    stages: Callable[[Setting], Stages]
    about: str
    routed: bool = False


# --- experts, one a task ---


def see_experts(setting: Setting, kind: Literal["alora", "lora"]) -> list[SeeExpert]:
    """Each has seen negatives of the tasks before its own, and prompts of no task."""
    return [
        SeeExpert(
            task=task.name,
            own=task.train,
            negatives=(*setting.memory(place), *setting.general),
            kind=kind,
            budget=setting.budget,
            seed=setting.seed,
        )
        for place, task in enumerate(setting.tasks)
    ]


def isolated(setting: Setting) -> list[TunedLora]:
    """A plain LoRA a task, each trained alone: what is merged and what routers choose from."""
    return [TunedLora(task.name, task.train, setting.budget, setting.seed) for task in setting.tasks]


def base(setting: Setting) -> Stages:
    return [TheBase()] * len(setting.tasks)


def see(setting: Setting) -> Stages:
    return _chains(see_experts(setting, "lora"))


def see_alora(setting: Setting) -> Stages:
    return _chains(see_experts(setting, "alora"))


def oracle(setting: Setting) -> Stages:
    return _named(setting, see_experts(setting, "lora"))


def oracle_alora(setting: Setting) -> Stages:
    return _named(setting, see_experts(setting, "alora"))


def oracle_isolated(setting: Setting) -> Stages:
    return _named(setting, isolated(setting))


# --- one adapter for everything ---


def sequential(setting: Setting) -> Stages:
    return [OneAdapter(unit) for unit in _sequence(setting)]


def rehearsal(setting: Setting) -> Stages:
    return [OneAdapter(unit) for unit in _sequence(setting, label="rehearsal", memory=True)]


def multi_task(setting: Setting) -> Stages:
    rows = tuple(sample for task in setting.tasks for sample in task.train)
    together = TunedLora("multi-task", rows, setting.budget, setting.seed)
    return [*[None] * (len(setting.tasks) - 1), OneAdapter(together)]


def l2(setting: Setting) -> Stages:
    return [OneAdapter(unit) for unit in _sequence(setting, label="l2", hold=L2(L2_STRENGTH))]


def ewc(setting: Setting) -> Stages:
    units = [isolated(setting)[0]]
    important: FisherOf | None = None
    for before, task in zip(setting.tasks, setting.tasks[1:], strict=False):
        important = FisherOf(units[-1], before.train[:FISHER_ROWS], important)
        hold = Ewc(EWC_STRENGTH, important)
        units.append(TunedLora(f"ewc-{task.name}", task.train, setting.budget, setting.seed, units[-1], hold))
    return [OneAdapter(unit) for unit in units]


def sfa(share: float, beta: float = 0.5) -> Callable[[Setting], Stages]:
    def stages(setting: Setting) -> Stages:
        hold = Averaged(share, beta)
        return [OneAdapter(unit) for unit in _sequence(setting, label=f"sfa{share:g}", hold=hold)]

    return stages


# --- merged, and routed beside the server ---


def uniform(setting: Setting) -> Stages:
    return [OneAdapter(Merged("uniform", parts, 1 / len(parts))) for parts in _growing(isolated(setting))]


def task_arithmetic(setting: Setting) -> Stages:
    parts = _growing(isolated(setting))
    return [OneAdapter(Merged("task-arithmetic", some, TASK_ARITHMETIC_SCALE)) for some in parts]


def ties(setting: Setting) -> Stages:
    parts = _growing(isolated(setting))
    return [OneAdapter(Merged("ties", some, 1.0, "ties_svd", TIES_DENSITY)) for some in parts]


def wise_ft(setting: Setting) -> Stages:
    """What was tuned in sequence, half way back to the base; the sequence itself goes on untouched."""
    return [OneAdapter(Merged("wise-ft", (unit,), WISE_FT_SHARE)) for unit in _sequence(setting)]


def centroid(setting: Setting) -> Stages:
    features = [PromptFeatures(task) for task in setting.tasks]
    experts = isolated(setting)
    return [
        Picked(_by_task(setting, experts[: stage + 1]), Picks("centroid", tuple(features[: stage + 1])))
        for stage in range(len(experts))
    ]


def classifier(setting: Setting) -> Stages:
    """Trained on all tasks' rows at once, so it is there after the last task alone."""
    picks = Picks("classifier", tuple(PromptFeatures(task) for task in setting.tasks))
    return [*[None] * (len(setting.tasks) - 1), Picked(_by_task(setting, isolated(setting)), picks)]


def arrow(setting: Setting) -> Stages:
    asked = tuple(sample for task in setting.tasks for sample in task.held_out)
    answers = ArrowAnswers(tuple(isolated(setting)), asked, setting.budget.answer_tokens)
    return [*[None] * (len(setting.tasks) - 1), OutsideTheServer(answers)]


METHODS: dict[str, Method] = {
    "base": Method(base, "the base alone"),
    "see": Method(see, "SEE with plain experts", routed=True),
    "see-alora": Method(see_alora, "SEE with activated experts", routed=True),
    "oracle": Method(oracle, "the right one of `see`'s experts by name"),
    "oracle-alora": Method(oracle_alora, "the right one of `see-alora`'s experts by name"),
    "oracle-isolated": Method(oracle_isolated, "the right one of the LoRAs trained alone"),
    "sequential": Method(sequential, "one LoRA, one task after the other"),
    "rehearsal": Method(rehearsal, "the same with a tenth of every earlier task"),
    "multi-task": Method(multi_task, "one LoRA on all tasks at once"),
    "l2": Method(l2, "sequential, with an L2 penalty towards the weights before"),
    "ewc": Method(ewc, "sequential, with EWC's penalty"),
    "sfa-1": Method(sfa(1.0), "SFA, averaged at each task's end"),
    "sfa-0.25": Method(sfa(0.25), "SFA, averaged after each quarter"),
    "wise-ft": Method(wise_ft, "sequential, each stage averaged with the base"),
    "uniform": Method(uniform, "mean of the LoRAs trained alone"),
    "task-arithmetic": Method(task_arithmetic, "sum of the LoRAs trained alone, scaled"),
    "ties": Method(ties, "TIES merging of the LoRAs trained alone"),
    "arrow": Method(arrow, "Arrow over the LoRAs trained alone, by PEFT"),
    "centroid": Method(centroid, "LoRAs trained alone, picked by the nearest mean of base hidden states", routed=True),
    "classifier": Method(classifier, "LoRAs trained alone, picked by a classifier of base hidden states", routed=True),
}


def _chains(experts: Sequence[SeeExpert]) -> Stages:
    """Newest first: an expert has only seen negatives of tasks before its own."""
    return [Chain(tuple(reversed(experts[: stage + 1]))) for stage in range(len(experts))]


def _named(setting: Setting, experts: Sequence[SeeExpert | TunedLora]) -> Stages:
    return [ByTask(_by_task(setting, experts[: stage + 1])) for stage in range(len(experts))]


def _by_task(setting: Setting, experts: Sequence[SeeExpert | TunedLora]) -> dict[str, SeeExpert | TunedLora]:
    """The first tasks' names to their experts."""
    return {task.name: expert for task, expert in zip(setting.tasks, experts, strict=False)}


def _growing(units: Sequence[TunedLora]) -> list[tuple[TunedLora, ...]]:
    """What there is after each task."""
    return [tuple(units[: stage + 1]) for stage in range(len(units))]


def _sequence(
    setting: Setting, *, label: str = "sequential", memory: bool = False, hold: Averaged | L2 | None = None
) -> list[TunedLora]:
    """One LoRA through all tasks; the first stage is the first task's LoRA alone, with nothing to hold on to yet."""
    units = [isolated(setting)[0]]
    for place, task in enumerate(setting.tasks[1:], start=1):
        rows: tuple[Sample, ...] = (*task.train, *(setting.memory(place) if memory else ()))
        units.append(TunedLora(f"{label}-{task.name}", rows, setting.budget, setting.seed, units[-1], hold))
    return units
