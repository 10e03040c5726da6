"""Chooses what one step computes. Knows sequences and token counts; nothing of tensors, memory or text.

There is no prefill phase and no decode phase: every sequence has tokens, some of which are computed, and each step
lets the computed ones catch up under a budget of tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.engine.kv_cache import BlockTable
from server.engine.prompt_states import PromptStates
from server.model.lora_plan import Blend, Slots

PATIENT_TOKENS = 4  # a step beside others, which on two processors is about a sixth longer for it


@dataclass(eq=False)
class Sequence:
    """Tokens on their way through the model.

    From token `activation_start` on the expert's `slots` apply (both None: the base alone). A sequence is ready
    for its logits, if it wants them, when `computed == len(tokens)`. A `fork` begins with tokens of another sequence,
    which count as computed here and may have to be computed there first, at the latest in the same step.
    """

    tokens: list[int]
    table: BlockTable
    slots: Slots | Blend | None = None
    activation_start: int | None = None
    computed: int = 0
    wants_logits: bool = True
    choice: "Choice | None" = None
    digest: str = ""  # of the expert
    keys: list[bytes] = field(default_factory=list)  # of its first blocks, see `prefix`
    fork: "Fork | None" = None
    states: PromptStates | None = None  # where its hidden states are wanted

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def awaits_parent(self) -> bool:
        return self.fork is not None and self.fork.parent.computed < self.fork.num_shared

    @property
    def needs_parent(self) -> bool:
        """Whether blocks of the parent are still to be computed, or to be copied from."""
        return self.fork is not None and (self.awaits_parent or self.fork.copy is not None)

    @property
    def num_reusable(self) -> int:
        """How many of its tokens may come from elsewhere: those behind which logits are wanted have to be computed."""
        ends = [len(self.tokens)] if self.wants_logits else [len(self.tokens) + 1]
        if self.choice is not None:
            ends.append(self.choice.at)
        return min(ends) - 1


@dataclass(frozen=True)
class Choice:
    """Behind the first `at` tokens the logits of the tokens `between` are wanted, and no others."""

    at: int
    between: tuple[int, int]


@dataclass(frozen=True)
class BlockCopy:
    """The first `num_tokens` tokens of block `source` are to stand in block `target` as well."""

    source: int
    target: int
    num_tokens: int


@dataclass(eq=False)
class Fork:
    """Where a sequence comes from: it shares the first `num_shared` tokens of `parent`.

    `copy` is what its own last shared block still lacks. The step that runs its first tokens makes it, or, where forks
    can borrow, the one after: most are only asked and never go on.
    """

    parent: Sequence
    num_shared: int
    copy: BlockCopy | None


@dataclass(frozen=True)
class Segment:
    """Tokens [start, end) of one sequence, all through the same slots (None: the base alone).

    `borrowed` is a copy that the sequence still lacks: in this step it reads those tokens in the block they come from.
    """

    sequence: Sequence
    start: int
    end: int
    slots: Slots | Blend | None
    borrowed: BlockCopy | None = None

    @property
    def wants_logits(self) -> bool:
        """True where all logits behind its last token are wanted: not where two of them decide there."""
        sequence = self.sequence
        ends = sequence.wants_logits and self.end == len(sequence.tokens)
        return ends and (sequence.choice is None or sequence.choice.at < self.end)

    @property
    def choice(self) -> Choice | None:
        """The sequence's choice, if these tokens come by it."""
        choice = self.sequence.choice
        return choice if choice is not None and self.start < choice.at <= self.end else None


@dataclass(frozen=True)
class StepPlan:
    """Segments in batch order: the base's first, then each expert's together. In every layer the step's own keys and
    values are written first, then `copies` are made, then segments attend."""

    segments: list[Segment] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(segment.end - segment.start for segment in self.segments)


def plan_step(
    sequences: Iterable[Sequence], *, budget: int, patient: Iterable[Sequence] = (), borrow: bool = False
) -> StepPlan:
    """Decoding sequences first, one token each, then prefills in order of arrival, up to `budget` tokens.

    A prefill that is longer than a step leaves a quarter of what it could take to those behind it, if they have use for
    that: a short prompt is answered while a long one is still read, which takes a third longer at most.
    A fork goes into the step that completes what it shares, if it arrives behind its parent. The `patient` are computed
    beside the others a few tokens at a time, which nobody takes from them, and alone like any other. `borrow`: a fork's
    first tokens read what it lacks in its parent's block.
    """
    pending = [s for s in sequences if s.num_pending]
    pending.sort(key=lambda s: s.num_pending > 1 or s.awaits_parent)  # stable: arrival order within each kind
    waiting = [s for s in patient if s.num_pending]
    share = min(PATIENT_TOKENS, budget // 2) if pending and waiting else 0
    plan, ends = StepPlan(), dict[int, int]()  # how far each sequence will be computed, by its id
    _add(plan, pending, ends, budget - share, borrow=borrow)
    _add(plan, waiting, ends, share if pending else budget, borrow=borrow)
    plan.segments.sort(key=lambda s: -1 if s.slots is None else s.slots.start)
    return plan


def _add(plan: StepPlan, sequences: list[Sequence], ends: dict[int, int], budget: int, *, borrow: bool) -> None:
    """Lets these catch up, up to `budget` tokens."""
    whole = budget
    for place, sequence in enumerate(sequences):
        if budget <= 0:
            break
        fork = sequence.fork
        if fork is not None and sequence.awaits_parent and ends.get(id(fork.parent), 0) < fork.num_shared:
            continue
        most = budget if sequence.num_pending <= whole else budget - _left_to(sequences[place + 1 :], sequence, budget)
        end = min(len(sequence.tokens), sequence.computed + most)
        budget -= end - sequence.computed
        ends[id(sequence)] = end
        lacking = None if fork is None else fork.copy
        borrows = borrow and fork is not None and sequence.computed == fork.num_shared
        plan.segments.extend(_split(sequence, end, lacking if borrows else None))
        if lacking is not None and not borrows:
            plan.copies.append(lacking)


def _left_to(behind: list[Sequence], long: Sequence, budget: int) -> int:
    """How much of the budget a long prefill leaves to these, of whom its own forks have to wait for it."""
    useful = (s.num_pending for s in behind if s.fork is None or s.fork.parent is not long)
    return min(budget // 4, sum(useful))


def _split(sequence: Sequence, end: int, borrowed: BlockCopy | None) -> list[Segment]:
    """One segment, or two where the expert wakes up on the way."""
    start, activation = sequence.computed, sequence.activation_start
    if activation is None or end <= activation:
        return [Segment(sequence, start, end, None, borrowed)]
    if start >= activation:
        return [Segment(sequence, start, end, sequence.slots, borrowed)]
    return [
        Segment(sequence, start, activation, None, borrowed),
        Segment(sequence, activation, end, sequence.slots, borrowed),
    ]
