"""The one thread that owns the model's state. Knows sessions, sequences and steps; nothing of text, HTTP or metrics.

Coroutines on an event loop hold *sessions*; everything a session does is posted to the engine thread as a command and
answered on the loop the session was opened from. Between commands the thread plans a step, runs it, and deals out what
came of it.
"""

import asyncio
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog
import torch

from expert_store import ExpertVersion, StoreError
from server.background import BREAKS
from server.engine.adapter_file import read_expert
from server.engine.expert_pool import Access, ExpertPool
from server.engine.host_cache import HostCache
from server.engine.job_maker import JobMaker
from server.engine.jobs import Answer, GenerateJob, Job, Resources
from server.engine.kv_cache import BlockPool
from server.engine.lately_chosen import LatelyChosen
from server.engine.mixture import MixtureJob
from server.engine.outbox import Outbox
from server.engine.prefix import PrefixCache
from server.engine.runner import Runner
from server.engine.scheduler import Sequence, StepPlan, plan_step
from server.engine.session import Session
from server.engine.session_state import SessionState
from server.engine.step_logits import StepLogits
from server.engine.types import Branches, EngineObserver, Occupancy, StepStats
from server.errors import EngineStopped, InvalidRequest, NonFiniteLogits, PromptTooLong, RequestTooLarge
from server.model.base import Base
from server.model.chat import MAX_INDICATOR_TOKENS, ChatFormat, Prompt, refuse_unreadable
from server.model.decode_graphs import Recorder
from server.model.lora_plan import experts_at
from server.model.native import Kernels
from server.model.sampling import rows_of, sample
from server.threads import take_processors

log = structlog.get_logger()

Generating = tuple[SessionState, Answer, int]  # an answer and the row of its logits


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes. `step_tokens` bounds one step's work; a slot is `slot_rank` rank-1 terms in every adapted layer.

    `threads` is how many the engine computes with (None: as many as any thread; see `server.threads`). `kernels` are
    used where they apply (None: torch does without); `recorder` makes graphs of decode steps (None: there are none). Of
    experts asked together up to `answer_ahead`, those lately chosen, compute what comes behind their accept strings as
    well: a few tokens each, against a step of its own for the one chosen.
    """

    kv_memory_bytes: int
    expert_memory_bytes: int = 1 << 30
    step_tokens: int = 512
    block_tokens: int = 16
    num_slots: int = 64
    slot_rank: int = 8
    max_sessions: int = 64
    prefix_cache: bool = True
    threads: int | None = None
    kernels: Kernels | None = None
    answer_ahead: int = 8
    recorder: Recorder | None = None


class Engine:
    """Serves sessions with one model. Takes over `base.model`, which must not be run elsewhere afterwards."""

    def __init__(self, base: Base, chat: ChatFormat, config: EngineConfig, observer: EngineObserver) -> None:
        self._config = config
        self._observer = observer
        self.max_context = base.max_context
        self.num_tokens = base.num_tokens
        self._runner = Runner(
            base,
            kv_memory_bytes=config.kv_memory_bytes,
            block_tokens=config.block_tokens,
            num_slots=config.num_slots,
            slot_rank=config.slot_rank,
            kernels=config.kernels,
            recorder=config.recorder,
        )
        self.blocks = BlockPool(num_blocks=self._runner.kv.num_blocks, block_tokens=config.block_tokens)
        self._prefix = PrefixCache(self.blocks, enabled=config.prefix_cache)
        self.pool = ExpertPool(
            self._runner.arenas,
            host=HostCache(
                config.expert_memory_bytes,
                on_ready=self._look_again,
                read=partial(read_expert, widths=base.spec.linears),
            ),
            num_slots=config.num_slots,
            slot_rank=config.slot_rank,
            on_event=observer.on_pool_event,
        )
        self.jobs = JobMaker(base, chat, check_fits=self.pool.check_fits)
        self._chosen = LatelyChosen(config.answer_ahead)
        self._inbox: deque[Callable[[], None]] = deque()
        self._outbox = Outbox()
        self._awake = threading.Condition()
        self._stopping = False
        self._closed = False  # nothing reads the inbox any more; changes while `_awake` is held
        self._occupancy: Occupancy | None = None
        self._waiting: deque[SessionState] = deque()
        self._active: list[SessionState] = []
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its current step; open sessions fail with EngineStopped."""
        self._stopping = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    def room(self, prompt: Prompt, branches: Branches) -> int:
        """The most new tokens that the context and all of the KV memory hold behind the prompt; 0: none."""
        numbers = range(1, self.max_context - len(prompt.tokens) + 1)
        total = self.blocks.num_blocks
        return bisect_left(numbers, True, key=lambda number: self._blocks_needed(prompt, number, branches) > total)

    async def open(
        self, prompt: Prompt, *, max_new_tokens: int, branches: Branches | None = None, patient: bool = False
    ) -> Session:
        """Waits, first come first served, until the request's KV memory is reserved.

        What is asked in a `patient` session is computed a few tokens at a time while others are answered.
        Raises InvalidRequest, PromptTooLong, RequestTooLarge or EngineStopped.
        """
        self._check_tokens(prompt)
        if len(prompt.tokens) + max_new_tokens > self.max_context:
            raise PromptTooLong(prompt_tokens=len(prompt.tokens), max_new_tokens=max_new_tokens, limit=self.max_context)
        state = SessionState(
            prompt=prompt,
            num_blocks=self._blocks_needed(prompt, max_new_tokens, branches or Branches()),
            loop=asyncio.get_running_loop(),
            outbox=self._outbox,
            patient=patient,
        )
        if state.num_blocks > self.blocks.num_blocks:
            raise RequestTooLarge.blocks(
                needed=state.num_blocks, total=self.blocks.num_blocks, block_tokens=self.blocks.block_tokens
            )
        session = Session(self, state)
        self._post(lambda: self._waiting.append(state))
        try:
            await state.admitted
        except asyncio.CancelledError:
            session.close()
            raise
        return session

    def _check_tokens(self, prompt: Prompt) -> None:
        """That the model can read them: what a step fails at ends the engine."""
        if not prompt.tokens:
            raise InvalidRequest("the prompt has no tokens: send some text", param="prompt")
        refuse_unreadable(prompt.tokens, self.num_tokens)

    async def measure_effect(self, expert: ExpertVersion, prompt: Prompt) -> float:
        """The largest change the expert makes to a logit at the end of the prompt; NaN if its logits are not finite.

        Its files are read in the background, behind all that is being answered.
        """
        self._post(lambda: self.pool.prefetch([expert], gently=True))
        async with await self.open(prompt, max_new_tokens=1, branches=Branches(plain=2), patient=True) as session:
            base, changed = await session.logits(expert)
        return float((changed - base).abs().max())

    def adopt(self, candidate: ExpertVersion, version: ExpertVersion) -> None:
        """A candidate has been published as this version: what is in memory of it needs not be read again."""
        with suppress(EngineStopped):
            self._post(lambda: self.pool.adopt(candidate, version))

    def forget(self, version: ExpertVersion) -> None:
        """A deleted version that no request can read any more, or a candidate that will not be published."""
        with suppress(EngineStopped):
            self._post(lambda: self.pool.forget(version))

    def check_integrity(self) -> None:
        """Asserts that nothing leaks. Only for a stopped engine or one without sessions."""
        self.blocks.check_integrity([lane.sequence.table for state in self._active for lane in state.lanes()])
        if not self._active:
            self.pool.check_idle()

    # Commands from sessions; each runs on the engine thread.

    def _post(self, command: Callable[[], None]) -> None:
        with self._awake:
            if not self.alive:
                raise EngineStopped("the engine is not running: restart the server and see its log for the cause")
            self._inbox.append(command)
            self._awake.notify()

    def _look_again(self) -> None:
        """An expert's files have been read."""
        self._inbox.append(lambda: None)
        self._wake()

    def _wake(self) -> None:
        with self._awake:
            self._awake.notify()

    def submit(self, state: SessionState, job: Job) -> None:
        """Gives a session something to do."""
        self._post(lambda: state.jobs.append(job))

    def drop(self, state: SessionState, experts: Seq[ExpertVersion]) -> None:
        """Closes the lanes of these experts, where they are open."""
        digests = [expert.digest for expert in experts]
        self._post(lambda: self._drop(state, digests))

    def _drop(self, state: SessionState, digests: list[str]) -> None:
        for digest in digests:
            if digest in state.asked:
                state.drop(state.asked[digest], self.blocks)

    def prefetch(self, experts: Seq[ExpertVersion]) -> None:
        """Starts reading experts that may be asked next, where there is room for them."""
        if experts:
            self._post(lambda: self.pool.look_ahead(experts))

    def close(self, state: SessionState) -> None:
        """Frees everything a session holds before the next step."""
        with suppress(EngineStopped):
            self._post(lambda: self._close(state))

    def _close(self, state: SessionState) -> None:
        if state in self._waiting:
            self._waiting.remove(state)
        if state in self._active:
            self._active.remove(state)
            state.release(self.blocks, self.pool)

    # The engine thread.

    def _main(self) -> None:
        if self._config.threads is not None:
            take_processors(self._config.threads)
        try:
            with torch.inference_mode():
                while not self._stopping:
                    self._turn()
        except Exception:
            log.exception("engine_failed")
        finally:
            self._fail_everything()
            self.pool.close()

    def _turn(self) -> None:
        """Commands, admissions, preparations, one step; or sleep until something happens."""
        while self._inbox:
            self._inbox.popleft()()
        self._admit()
        self._prepare()
        begun = self._begin_answers()
        plan = plan_step(
            self._sequences(patient=False),
            patient=self._sequences(patient=True),
            budget=self._config.step_tokens,
            borrow=self._runner.borrows,
        )
        self._report_occupancy()
        self._outbox.send()
        if plan.segments:
            with BREAKS.step():
                self._step(plan)
                self._outbox.send()
            return
        if begun:
            return  # what they have given back may be what others wait for
        with self._awake:
            if not self._inbox and not self._stopping:
                self._awake.wait()

    def _sequences(self, *, patient: bool) -> Iterator[Sequence]:
        return (lane.sequence for state in self._active if state.patient == patient for lane in state.lanes())

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self._config.max_sessions:
            state = self._waiting[0]
            reservation = self.blocks.try_reserve(state.num_blocks)
            if reservation is None:
                return
            self._waiting.popleft()
            state.admit(reservation)
            self._active.append(state)

    def _prepare(self) -> None:
        """Lets every session's first job, in order of arrival, take what it needs."""
        access = Access.FULL
        for state in self._active:
            if state.jobs:
                access = self._prepare_first_job(state, access)

    def _prepare_first_job(self, state: SessionState, access: Access) -> Access:
        job: Job = state.jobs[0]
        try:
            return job.prepare(state, self._resources(access))
        except (StoreError, OSError) as error:  # the expert's files; nobody else is concerned
            state.end_job(self.pool)
            job.fail(state, error)
            return access

    def _resources(self, access: Access = Access.NONE) -> Resources:
        return Resources(self._config.step_tokens // 2, self._chosen, self.blocks, self._prefix, self.pool, access)

    def _step(self, plan: StepPlan) -> None:
        started = time.perf_counter()
        for segment in plan.segments:
            self.blocks.grow(segment.sequence.table, segment.end)
        logits = self._runner.run(plan)
        for segment in plan.segments:
            sequence = segment.sequence
            sequence.computed = segment.end
            if sequence.fork is not None and segment.borrowed is None:
                sequence.fork.copy = None
            self._prefix.remember(sequence)
        self._count(plan)
        self._deal_out(StepLogits.of(plan.segments, logits))
        self._observer.on_step(self._stats(plan, time.perf_counter() - started))

    def _count(self, plan: StepPlan) -> None:
        computed = {id(s.sequence): 0 for s in plan.segments}
        for segment in plan.segments:
            computed[id(segment.sequence)] += segment.end - segment.start
        for state in self._active:
            state.computed_tokens += sum(computed.get(id(lane.sequence), 0) for lane in state.lanes())

    def _deal_out(self, logits: StepLogits) -> None:
        """Hands logits to the jobs that wait for them."""
        resources = self._resources()
        generating: list[Generating] = []
        mixing: list[tuple[SessionState, Answer, torch.Tensor]] = []
        for state in self._active:
            job: Job | None = state.jobs[0] if state.jobs else None
            if isinstance(job, GenerateJob):
                row = None if job.lane is None else logits.row(job.lane.sequence)
                if row is not None:
                    generating.append((state, job, row))
            elif isinstance(job, MixtureJob):
                mixed_V = job.take_logits(logits)
                if mixed_V is not None:
                    mixing.append((state, job, mixed_V))
            elif job is not None and not isinstance(job, Answer):
                job.take(state, logits, resources)
        self._append_tokens(generating, logits.all_WV)
        if mixing:
            mixed_MV = torch.stack([mixed_V for *_, mixed_V in mixing])
            self._append_tokens([(state, job, row) for row, (state, job, _) in enumerate(mixing)], mixed_MV)

    def _begin_answers(self) -> bool:
        """First tokens of generations whose logits were computed while their experts were asked; True if any."""
        ready = []
        for state in self._active:
            job: Job | None = state.jobs[0] if state.jobs else None
            if isinstance(job, GenerateJob) and job.lane is not None and job.lane.logits_V is not None:
                ready.append((state, job, job.lane.logits_V))
                job.lane.logits_V = None
        if ready:
            logits_WV = torch.stack([logits_V for *_, logits_V in ready])
            self._append_tokens([(state, job, row) for row, (state, job, _) in enumerate(ready)], logits_WV)
        return bool(ready)

    def _append_tokens(self, generating: list[Generating], logits_WV: torch.Tensor) -> None:
        """Samples a token for each, all together."""
        generating = self._without_broken(generating, logits_WV)
        if generating:
            resources = self._resources()
            sample_rows = [job.sample_row(state.prompt) for state, job, _ in generating]
            tokens = sample(rows_of(logits_WV, [row for *_, row in generating]), sample_rows)
            for (state, job, _), token in zip(generating, tokens, strict=True):
                job.append(state, token, resources)

    def _without_broken(self, generating: list[Generating], logits_WV: torch.Tensor) -> list[Generating]:
        """Fails the generations whose logits are not finite; returns the others."""
        finite_W = logits_WV.sum(dim=-1, dtype=torch.float32).isfinite().tolist()  # NaN and infinity survive a sum
        for state, job, row in generating:
            if not finite_W[row]:
                job.end_with(state, NonFiniteLogits(job.refs), self._resources())
        return [item for item in generating if finite_W[item[2]]]

    def _stats(self, plan: StepPlan, seconds: float) -> StepStats:
        return StepStats(
            seconds=seconds,
            tokens=plan.num_tokens,
            sequences=len({id(segment.sequence) for segment in plan.segments}),
            experts=len({expert for segment in plan.segments for expert in experts_at(segment.slots)}),
            reused=self._prefix.collect_reused(),
        )

    def _report_occupancy(self) -> None:
        occupancy = Occupancy(
            waiting_sessions=len(self._waiting),
            active_sessions=len(self._active),
            kv_blocks_used=self.blocks.num_used,
            kv_blocks_reserved=self.blocks.num_reserved,
            kv_blocks_total=self.blocks.num_blocks,
            slots_used=self.pool.num_used,
            slots_total=self.pool.num_slots,
            host_bytes_used=self.pool.host.used_bytes,
            host_bytes_total=self.pool.host.budget_bytes,
        )
        if occupancy != self._occupancy:
            self._occupancy = occupancy
            self._observer.on_occupancy(occupancy)

    def _fail_everything(self) -> None:
        error = EngineStopped("the engine has stopped: restart the server and see its log for the cause")
        with self._awake:
            self._closed = True
        while self._inbox:
            self._inbox.popleft()()
        for state in [*self._waiting, *self._active]:
            state.fail(error)
            state.release(self.blocks, self.pool)
        self._waiting.clear()
        self._active.clear()
        self._outbox.send()

    def _blocks_needed(self, prompt: Prompt, max_new_tokens: int, branches: Branches) -> int:
        """The most blocks a request can hold: the prompt, its probes, and the answer of whichever sequence wins."""
        suffix = len(prompt.tokens) - prompt.body_length + MAX_INDICATOR_TOKENS
        answer = self.blocks.blocks_for(suffix + max_new_tokens) + 1
        activated = branches.activated * (self.blocks.blocks_for(suffix) + 1)
        plain = branches.plain * self.blocks.blocks_for(len(prompt.tokens) + MAX_INDICATOR_TOKENS)
        whole = self.blocks.blocks_for(len(prompt.tokens) + MAX_INDICATOR_TOKENS + max_new_tokens)
        mixed = max(0, branches.mixed - 1) * whole  # one whole answer is counted already
        return self.blocks.blocks_for(len(prompt.tokens)) + answer + activated + plain + mixed
