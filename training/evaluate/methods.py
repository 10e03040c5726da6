"""The methods as they meet the stream: who answers after each task, and what has to be trained for it. Trains nothing.

A method is a function from a setting to one answerer for every task of the stream, None where that stage is not
looked at; a new one is a function more and a line in METHODS.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from expert_store import Gates
from server.settings import MAX_GRADIENT_EXPERTS
from training.clusters import Clustering
from training.evaluate.adapters import L2, Averaged, Ewc, FisherOf, GatedLora, Guarded, SeeExpert, TunedLora
from training.evaluate.answerers import (
    Answerer,
    ByTask,
    Chain,
    MixedByGates,
    MixedByGradient,
    OneAdapter,
    OutsideTheServer,
    Picked,
    TheBase,
)
from training.evaluate.elrea import ClusterExpert, cluster_experts
from training.evaluate.l2r import LearnedGates, MergedAnswers
from training.evaluate.merging import Merged
from training.evaluate.routers import ArrowAnswers, Picks, PromptFeatures
from training.evaluate.stream import Sample, Setting
from training.selection import Wake

Stages = Sequence[Answerer | None]

FISHER_ROWS = 40
EWC_STRENGTH = 100.0
L2_STRENGTH = 0.01
TASK_ARITHMETIC_SCALE = 0.4
TIES_DENSITY = 0.2
WISE_FT_SHARE = 0.5
L2R_MEMORY = 20  # rows a task, at least


@dataclass(frozen=True)
class Method:
    """`routed`: it chooses an expert for each row, or leans on one, so that its choices can be right or wrong.

    `always_answers`: its router has no way to leave a row to the base, whatever is asked.
    """

    stages: Callable[[Setting], Stages]
    about: str
    routed: bool = False
    always_answers: bool = False


# --- experts, one a task ---


def see_experts(setting: Setting, kind: Literal["alora", "lora"], wake: Wake = "prompt") -> list[SeeExpert]:
    """Each has seen negatives of the tasks before its own, and prompts of no task."""
    return [
        SeeExpert(
            task=task.name,
            own=task.train,
            negatives=(*setting.memory(place), *setting.general),
            kind=kind,
            budget=setting.budget,
            seed=setting.seed,
            wake=wake,
        )
        for place, task in enumerate(setting.tasks)
    ]


def gated(setting: Setting) -> list[GatedLora]:
    """The LoRAs trained alone, each with a gate that has seen what the SEE expert of its task has."""
    return [
        GatedLora(
            task=task.name,
            lora=lora,
            own=task.train,
            negatives=(*setting.memory(place), *setting.general),
            budget=setting.budget,
            seed=setting.seed,
        )
        for place, (task, lora) in enumerate(zip(setting.tasks, isolated(setting), strict=True))
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


def see_late(setting: Setting) -> Stages:
    return _chains(see_experts(setting, "alora", "indicator"))


def gates(setting: Setting) -> Stages:
    return _chains(gated(setting))


def guarded(experts: Callable[[Setting], Sequence[SeeExpert | GatedLora]]) -> Callable[[Setting], Stages]:
    """Their chain, which asks none whose guard says that a prompt is not of its kind."""
    return lambda setting: _chains([Guarded(expert) for expert in experts(setting)], guarded=True)


def oracle(setting: Setting) -> Stages:
    return _named(setting, see_experts(setting, "lora"))


def oracle_alora(setting: Setting) -> Stages:
    return _named(setting, see_experts(setting, "alora"))


def oracle_late(setting: Setting) -> Stages:
    return _named(setting, see_experts(setting, "alora", "indicator"))


def oracle_isolated(setting: Setting) -> Stages:
    return _named(setting, isolated(setting))


# --- one adapter for everything ---


def sequential(setting: Setting) -> Stages:
    return [OneAdapter(unit) for unit in _sequence(setting)]


def rehearsal(setting: Setting) -> Stages:
    return [OneAdapter(unit) for unit in _sequence(setting, label="rehearsal", memory=True)]


def multi_task(setting: Setting) -> Stages:
    return _at_the_end(setting, OneAdapter(_together(setting)))


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
    return _at_the_end(setting, Picked(_by_task(setting, isolated(setting)), picks))


def arrow(setting: Setting) -> Stages:
    answers = ArrowAnswers(tuple(isolated(setting)), _asked(setting), setting.budget.answer_tokens)
    return _at_the_end(setting, OutsideTheServer(answers))


# --- mixed by routers that are trained on rows of all tasks at once ---


def elrea(how: Clustering, mixed: int | None = None) -> Callable[[Setting], Stages]:
    """The `mixed` nearest experts with the base adapter weighing 1 / C; all C of them where it is None."""

    def stages(setting: Setting) -> Stages:
        base_adapter, experts = _pool(setting, how)
        count = len(experts)
        return _at_the_end(setting, MixedByGradient(base_adapter, experts, mixed or count, 1 / count))

    return stages


def elrea_top1(setting: Setting) -> Stages:
    base_adapter, experts = _pool(setting, "birch")
    return _at_the_end(setting, MixedByGradient(base_adapter, experts, mixed=1, base_weight=0.0))


def l2r(kind: Gates) -> Callable[[Setting], Stages]:
    def stages(setting: Setting) -> Stages:
        router = _router(setting, kind)
        return _at_the_end(setting, MixedByGates(router, router.experts))

    return stages


def l2r_merge(setting: Setting) -> Stages:
    answers = MergedAnswers(_router(setting, "sigmoid"), _asked(setting), setting.budget.answer_tokens)
    return _at_the_end(setting, OutsideTheServer(answers))


METHODS: dict[str, Method] = {
    "base": Method(base, "the base alone"),
    "see": Method(see, "SEE with plain experts", routed=True),
    "see-alora": Method(see_alora, "SEE with activated experts", routed=True),
    "see-late": Method(see_late, "SEE with activated experts woken at the indicator", routed=True),
    "gates": Method(gates, "the LoRAs trained alone, each with a gate, in a chain", routed=True),
    "see-guard": Method(guarded(partial(see_experts, kind="lora")), "`see`, guarded", routed=True),
    "see-alora-guard": Method(guarded(partial(see_experts, kind="alora")), "`see-alora`, guarded", routed=True),
    "see-late-guard": Method(
        guarded(partial(see_experts, kind="alora", wake="indicator")), "`see-late`, guarded", routed=True
    ),
    "gates-guard": Method(guarded(gated), "`gates`, guarded", routed=True),
    "oracle": Method(oracle, "the right one of `see`'s experts by name"),
    "oracle-alora": Method(oracle_alora, "the right one of `see-alora`'s experts by name"),
    "oracle-late": Method(oracle_late, "the right one of `see-late`'s experts by name"),
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
    "arrow": Method(arrow, "Arrow over the LoRAs trained alone, by PEFT", always_answers=True),
    "l2r-wavg": Method(
        l2r("sigmoid"), "L2R over the LoRAs trained alone, their outputs averaged", routed=True, always_answers=True
    ),
    "l2r-softmax": Method(l2r("softmax"), "the same with softmax gates", routed=True, always_answers=True),
    "l2r-merge": Method(l2r_merge, "`l2r-wavg`'s gates, A and B averaged apart", always_answers=True),
    "elrea": Method(elrea("birch"), "ELREA, all experts mixed", always_answers=True),
    "elrea-top2": Method(elrea("birch", 2), "the same, the two nearest experts mixed", always_answers=True),
    "elrea-top1": Method(elrea_top1, "the same, the nearest expert alone", always_answers=True),
    "elrea-random": Method(elrea("random"), "ELREA, clusters at random", always_answers=True),
    "elrea-base": Method(multi_task, "ELREA's base adapter alone, the unit of `multi-task`"),
    "centroid": Method(
        centroid,
        "LoRAs trained alone, picked by the nearest mean of base hidden states",
        routed=True,
        always_answers=True,
    ),
    "classifier": Method(
        classifier,
        "LoRAs trained alone, picked by a classifier of base hidden states",
        routed=True,
        always_answers=True,
    ),
}


def _chains(experts: Sequence[SeeExpert | GatedLora | Guarded], *, guarded: bool = False) -> Stages:
    """Newest first: an expert has only seen negatives of tasks before its own."""
    return [Chain(tuple(reversed(experts[: stage + 1])), guarded) for stage in range(len(experts))]


def _named(setting: Setting, experts: Sequence[SeeExpert | TunedLora]) -> Stages:
    return [ByTask(_by_task(setting, experts[: stage + 1])) for stage in range(len(experts))]


def _by_task(setting: Setting, experts: Sequence[SeeExpert | TunedLora]) -> dict[str, SeeExpert | TunedLora]:
    """The first tasks' names to their experts."""
    return {task.name: expert for task, expert in zip(setting.tasks, experts, strict=False)}


def _at_the_end(setting: Setting, answerer: Answerer) -> Stages:
    """There after the last task alone."""
    return [*[None] * (len(setting.tasks) - 1), answerer]


def _together(setting: Setting) -> TunedLora:
    """One LoRA on all tasks' rows at once: multi-task training, and ELREA's base adapter."""
    rows = tuple(sample for task in setting.tasks for sample in task.train)
    return TunedLora("multi-task", rows, setting.budget, setting.seed)


def _pool(setting: Setting, how: Clustering) -> tuple[TunedLora, tuple[ClusterExpert, ...]]:
    """ELREA's base adapter and experts: as many as tasks, as far as a request may mix them."""
    base_adapter = _together(setting)
    return base_adapter, cluster_experts(base_adapter, min(len(setting.tasks), MAX_GRADIENT_EXPERTS), how)


def _router(setting: Setting, kind: Gates) -> LearnedGates:
    memory = setting.memory(len(setting.tasks), at_least=L2R_MEMORY)
    return LearnedGates(tuple(isolated(setting)), memory, kind, setting.seed)


def _asked(setting: Setting) -> tuple[Sample, ...]:
    return tuple(sample for task in setting.tasks for sample in task.held_out)


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
