"""What is said of a clip or a person: the words, the band without one, scores as text."""

from typing import NamedTuple

SURE = 0.05  # text names no probability below it or above 1 minus it: no model here is so certain
UNCERTAIN = (0.4, 0.6)  # in between even a calibrated model is wrong at least 4 times in 10
NO_VERDICT = "no verdict"  # of what the weights cannot judge; a note says why
ERROR = "error"  # of a file that cannot be read; a note says why


class Row(NamedTuple):
    """Of a clip, of a file that cannot be read, or of a participant (then `clip` is empty)."""

    clip: str
    participant: str
    probability: float | None
    verdict: str
    note: str
    spread: float | None = None  # of the probabilities by its networks; None of a single one


def clamp(probability: float) -> float:
    """The nearest that is ever shown."""
    return min(max(probability, SURE), 1 - SURE)


def format_number(probability: float) -> str:
    """A score as text: never as certain as 0 or 1."""
    text = f"{clamp(probability):.2f}"
    if probability == clamp(probability):
        return text
    return f"under {text}" if probability < SURE else f"over {text}"
