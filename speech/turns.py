"""Who works when, and how much: visitors who wait, turns among jobs, and seconds of sound.

It knows neither HTTP nor the page: a job joins TURNS, works within its turn, and asks whether its
caller has gone; of its sound a Budget is spent.
"""

import contextlib
import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from speech.audio import SETTINGS, cached_by_file, read_facts
from speech.cli import InputError, show_controls
from speech.dataset import read_shape

MAX_SOUND_SECONDS = 2 * 3600  # of one request: 20 s of work for both models on two cores
DENSE = 2 * 48_000  # samples a second; of what has more, a second costs and counts for more
LOOK_SECONDS = 45.0  # at headers, of which a hostile one takes apart.STALL_SECONDS
UNHEARD_SECONDS = 30.0  # a call whose answer nobody has asked for by then was not meant
MAX_LEFT = 10_000  # sessions of which is known when nobody waited any more
TURN_SECONDS = 0.1  # of work before another job is let on
WAIT_SECONDS = 1.0  # for a step to end; then a job that has worked less goes on beside it
MAX_JOBS = 32  # at work in turns
# How many of these may have more seconds of sound; others are refused for now. So a short one soon
# finds a place, and the long ones take a GB together.
PLACES = {60: threading.BoundedSemaphore(MAX_JOBS - 4), 600: threading.BoundedSemaphore(4)}


# --- who waits ----------------------------------------------------------------------------------


class Listeners:
    """Which sessions have somebody waiting for an answer."""

    def __init__(self):
        self.open, self.left = Counter(), {}  # streams; when the last one ended

    @contextlib.contextmanager
    def listening(self, session: str) -> Iterator[None]:
        self.open[session] += 1
        try:
            yield
        finally:
            self.open[session] -= 1
            if not self.open[session]:
                del self.open[session]
                self.left.pop(session, None)  # the latest is last
                self.left[session] = time.monotonic()
                if len(self.left) > MAX_LEFT:
                    self.left.pop(next(iter(self.left)), None)

    def watch(self, session: str | None) -> Callable[[], bool]:
        """Begins a job -> whether whoever wanted it has gone; without a session nobody can."""
        started = time.monotonic()

        def has_gone() -> bool:
            if not session or session in self.open:
                return False
            return (
                self.left.get(session, -1.0) > started
                or time.monotonic() > started + UNHEARD_SECONDS
            )

        return has_gone

    def forget(self, seconds: float) -> None:
        limit = time.monotonic() - seconds
        self.left = {session: left for session, left in self.left.copy().items() if left > limit}


LISTENERS = Listeners()


def watch_caller() -> Callable[[], bool]:
    """Within a function that Gradio calls -> whether the caller has gone, to be asked now and then.

    Not by a gr.Request among its arguments: Gradio sees none in those of a functools.partial.
    """
    from gradio.context import LocalContext

    request = LocalContext.request.get(None)
    return LISTENERS.watch(getattr(request, "session_hash", None))


# --- turns --------------------------------------------------------------------------------------


class Turns:
    """A lock that the short job gets first: what a job has used already counts as coming later.

    So a long job delays a short one by what it does in one turn, and still gets on: it waits no
    longer than it has worked. A step that takes long cannot be cut: a short job is let on beside
    it, one at a time.
    """

    def __init__(self):
        self.change, self.busy = threading.Condition(), 0  # jobs at work
        self.waiting, self.number = [], itertools.count()

    def join(self) -> "Turn":
        """Begins a job -> its turns: entered around each of its steps, or all, with rest()s."""
        return Turn(self)


class Turn:
    """One job's place among the others."""

    def __init__(self, turns: Turns):
        self.turns, self.used, self.started = turns, 0.0, 0.0

    def __enter__(self) -> "Turn":
        turns, now = self.turns, time.monotonic()
        place, late = (now + self.used, next(turns.number)), now + WAIT_SECONDS

        def may_go() -> bool:
            beside = self.used < WAIT_SECONDS and time.monotonic() >= late
            return turns.waiting[0] == place and turns.busy < (2 if beside else 1)

        with turns.change:
            heapq.heappush(turns.waiting, place)
            while not may_go():
                left = late - time.monotonic()
                turns.change.wait(left if left > 0 else None)
            heapq.heappop(turns.waiting)
            turns.busy += 1
            turns.change.notify_all()  # whoever is first now may be late too
        self.started, HERE.turn = time.monotonic(), self
        return self

    def __exit__(self, *_: object) -> None:
        HERE.turn = None
        self.used += time.monotonic() - self.started
        with self.turns.change:
            self.turns.busy -= 1
            self.turns.change.notify_all()

    def rest(self) -> None:
        """Lets another go on, if one waits; called within the turn, wherever a step ends."""
        if self.turns.waiting and time.monotonic() > self.started + TURN_SECONDS:
            self.__exit__()
            self.__enter__()


TURNS = Turns()
HERE = threading.local()  # .turn: what this thread is in


@contextlib.contextmanager
def step_aside() -> Iterator[None]:
    """Lets others work while this thread, within a turn or not, waits for another process."""
    turn = getattr(HERE, "turn", None)
    if not turn:
        yield
        return
    turn.__exit__()
    try:
        yield
    finally:
        turn.__enter__()


# --- seconds of sound ---------------------------------------------------------------------------


def check_sources(paths: list[Path], most: float = MAX_SOUND_SECONDS) -> None:
    """Bounds the work that the files ask for, by what their headers announce.

    Raises:
        InputError: a file is listed twice, or there are more than `most` seconds of sound.
    """
    [(path, n)] = Counter(path.resolve() for path in paths).most_common(1) or [(None, 0)]
    if n > 1:
        raise InputError(f"{show_controls(path.name)} is listed {n} times: once is enough")
    budget, until = Budget(most), time.monotonic() + LOOK_SECONDS
    for path in paths:
        if time.monotonic() > until:
            raise InputError(f"to look at {len(paths)} files takes too long: send fewer at once")
        budget.spend(*read_announced(path))


@cached_by_file
def read_announced(path: Path) -> tuple[float, int]:
    """A file's seconds by its header and the samples in one; 0 where it cannot be believed."""
    with contextlib.suppress(InputError):  # whoever reads it will say what is wrong
        if path.suffix.lower() == ".npy":
            return read_shape(path)[1] * SETTINGS["hop_length"] / SETTINGS["sample_rate"], 0
        facts = read_facts(path)
        return facts.seconds, facts.density
    return 0.0, 0


class Budget:
    """Seconds of sound that one request may bring; spent again while decoding: headers lie."""

    def __init__(self, seconds: float = MAX_SOUND_SECONDS):
        self.most = self.left = seconds

    @property
    def spent(self) -> float:
        return self.most - self.left

    def spend(self, seconds: float, density: int = 0) -> None:
        """A FLAC of 1 MB can hold an hour of eight silent channels at 192 kHz: density counts."""
        self.left -= seconds * max(density / DENSE, 1)
        if self.left < 0:
            most = f"{self.most / 3600:g} hours" if self.most >= 3600 else f"{self.most:g} s"
            dense = f", counted at {DENSE} samples a second; this has {density}: save it as mono at"
            advice = f"{dense} 16 kHz" if density > DENSE else ": send less, or cut it"
            raise InputError(f"more than {most} of sound at once{advice}")
