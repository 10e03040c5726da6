"""How much work a run of the bench is: rows, lengths, epochs. Knows no files and no methods."""

from dataclasses import dataclass

from training.tuning import TuningOptions

SSR_ORDER = ("qa", "qg", "sa", "sum", "trans", "dsg", "expl", "para", "pe", "pos")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The same for every method. `rows` and `held_out` None: all there are.

    `memory_share` is rho of SEE and of rehearsal; `general` counts prompts of no task among the negatives, `strangers`
    those asked of every unseen task, `cost_rows` those whose time is taken of every task.
    """

    tasks: tuple[str, ...]
    rows: int | None
    held_out: int | None
    general: int
    strangers: int
    cost_rows: int
    definition_chars: int
    input_chars: int
    answer_tokens: int
    epochs: int
    batch_size: int = 8
    learning_rate: float = 2e-3
    rank: int = 8
    memory_share: float = 0.1

    def tuning(self, seed: int) -> TuningOptions:
        return TuningOptions(
            epochs=self.epochs, learning_rate=self.learning_rate, batch_size=self.batch_size, seed=seed
        )


BUDGETS = {
    "small": Budget(
        tasks=("qa", "sa", "trans", "para", "pe"),
        rows=150,
        held_out=40,
        general=60,
        strangers=20,
        cost_rows=4,
        definition_chars=500,
        input_chars=600,
        answer_tokens=48,
        epochs=2,
    ),
    "full": Budget(
        tasks=SSR_ORDER,
        rows=None,
        held_out=None,
        general=400,
        strangers=50,
        cost_rows=10,
        definition_chars=1500,
        input_chars=2000,
        answer_tokens=128,
        epochs=3,
        batch_size=16,
        learning_rate=1e-3,
    ),
}
