"""How many processor threads compute. Knows the environment; nothing of models. Comes before torch is imported.

Two teams of OpenMP threads on the same processors put each other to sleep: libgomp stops spinning as soon as there are
more threads than processors, and a step of a small model, thousands of short products, then takes half as long again.
So every thread starts with a team of one, and the engine alone takes them all.

A team waits for its slowest thread hundreds of times a step. Where another program has taken that one's processor, the
others would spin until the system takes theirs too, and none would be let in first when it is free again, as a thread
that slept is. So they spin for some microseconds, enough for threads that run at the same time, and then sleep.
"""

import os
import threading

VARIABLE = "OMP_NUM_THREADS"
SPINS_VARIABLE = "GOMP_SPINCOUNT"
POLICY_VARIABLE = "OMP_WAIT_POLICY"
_SPINS = "2000"


def spin_briefly() -> None:
    """Sets the environment for torch's import, unless it says already how threads are to wait for each other."""
    if POLICY_VARIABLE not in os.environ:
        os.environ.setdefault(SPINS_VARIABLE, _SPINS)


def leave_processors_to_engine(wanted: int) -> int:
    """Sets the environment for torch's import; returns the engine's share: `wanted`, or, where that is 0, what
    OMP_NUM_THREADS says, or else every processor this process may use."""
    spin_briefly()
    share = wanted or _declared() or _available()
    os.environ[VARIABLE] = "1"
    return share


def take_processors(share: int) -> None:
    """Gives the calling thread a team of `share` threads; others keep theirs."""
    import torch

    torch.set_num_threads(share)
    assert torch.get_num_threads() == share, "torch did not take the number of threads. This is a bug."
    # Having asked, this thread keeps its number. Threads that ask later would get the same; another lowers it for them.
    restorer = threading.Thread(target=torch.set_num_threads, args=(1,))
    restorer.start()
    restorer.join()


def _declared() -> int:
    value = os.environ.get(VARIABLE, "")
    return int(value) if value.isdecimal() else 0


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
