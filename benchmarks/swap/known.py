"""What every version has to answer, known before it is swapped under load. Times nothing."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

from rich.progress import Progress

from benchmarks.generation import Heard
from benchmarks.lifecycle import Lifecycle

MOVING, STEADY = "moving", "steady"


@dataclass
class Known:
    """Which adapter every version was made from, and what each adapter answers to each prompt.

    A version is put in before any request can reach it.
    """

    adapter_of: MutableMapping[str, int] = field(default_factory=dict)
    texts: dict[tuple[int, int], str] = field(default_factory=dict)

    def is_as_known(self, heard: Heard, prompt: int) -> bool:
        return self.texts[self.adapter_of[heard.ref], prompt] == heard.text


def learn(
    lifecycle: Lifecycle, prompts: Sequence[str], progress: Progress, *, num_adapters: int, max_tokens: int
) -> tuple[Known, int]:
    """What every adapter answers, each prompt asked alone; and the one version of the moving expert that stays."""
    task = progress.add_task("known answers", total=num_adapters * len(prompts))
    known = Known()
    for adapter in range(num_adapters):
        ref = f"{MOVING}@{lifecycle.register(MOVING, adapter)}"
        known.adapter_of[ref] = adapter
        for number, prompt in enumerate(prompts):
            known.texts[adapter, number] = lifecycle.answer(ref, prompt, max_tokens)
            progress.advance(task)
    for version in range(1, num_adapters):
        lifecycle.delete(MOVING, version)
    known.adapter_of[f"{STEADY}@{lifecycle.register(STEADY, 0)}"] = 0
    return known, num_adapters
