"""Which share of clips has no verdict, by what is fed and what the weights were trained on.

    python benchmarks/familiarity.py synthetic=FOLDER ravdess12=FOLDER > docs/familiarity.md

A FOLDER has Spectrograms/ and dataset.csv, of 8 s clips as prepare.py makes them. No network is
trained: the answer does not depend on it.

Shapes: N clips, M mel bins, T frames, n samples.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold

sys.path.insert(0, str(Path(__file__).parent.parent))

from predict import check_length
from speech import familiarity
from speech.audio import SETTINGS, log_mel
from speech.cli import InputError, Parser, run
from speech.dataset import min_max, read_labels, read_spectrogram

COUNT = 20  # clips of each kind of sound that is no speech
RATE, FRAMES = SETTINGS["sample_rate"], 251
SECONDS = np.arange(8 * RATE) / RATE

Corpora = dict[str, tuple[np.ndarray, np.ndarray]]  # clips (N, M, T), participants (N,)


# --- sounds (n,) that are no speech -------------------------------------------------------------


def make_tone(rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * rng.uniform(80, 4000) * SECONDS)


def make_click(rng: np.random.Generator) -> np.ndarray:
    samples = np.zeros(len(SECONDS))
    samples[rng.integers(len(samples))] = 1
    return samples


def make_music(rng: np.random.Generator) -> np.ndarray:
    """Two notes a second of a few harmonics that die away."""
    notes = np.repeat(220 * 2 ** (rng.integers(0, 24, 16) / 12), RATE // 2)
    fading = np.exp(-3 * (SECONDS % 0.5))
    return sum(fading * np.sin(2 * np.pi * notes * n * SECONDS) / n for n in (1, 2, 3))


SOUNDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "white noise": lambda rng: rng.normal(0, 0.1, len(SECONDS)),
    "a tone": make_tone,
    "a click": make_click,
    "near-silence (noise at -70 dBFS)": lambda rng: rng.normal(0, 1e-4, len(SECONDS)),
    "music of a few oscillators": make_music,
}


# --- the corpus's own clips, changed ------------------------------------------------------------


def as_telephone(clip: np.ndarray) -> np.ndarray:
    """Without what is above 3.4 kHz, as after a telephone."""
    bins = np.arange(len(clip)) < 80  # of 128: the 80th is at 3.3 kHz
    return min_max(clip * bins[:, None])


def at_wrong_rate(clip: np.ndarray) -> np.ndarray:
    """Sound of 22,050 Hz taken for sound of 16 kHz: slower and lower, and nothing at the top."""
    from librosa import hz_to_mel, mel_to_hz

    bins, slower = np.arange(len(clip)), 22_050 / RATE
    step = hz_to_mel(RATE / 2) / (len(clip) + 1)
    places = hz_to_mel(mel_to_hz((bins + 1) * step) * slower) / step - 1
    times = np.arange(clip.shape[1]) / slower
    lower = [np.interp(places, bins, frame, right=0) for frame in clip.T]
    return min_max(np.array([np.interp(times, range(FRAMES), row) for row in np.transpose(lower)]))


def transpose(clip: np.ndarray) -> np.ndarray:
    return familiarity.fill(clip.T[:128], FRAMES)


def to_power(clip: np.ndarray) -> np.ndarray:
    return min_max(10 ** (8 * clip - 8))


def shuffle(clip: np.ndarray) -> np.ndarray:
    return clip[:, np.random.default_rng(0).permutation(clip.shape[1])]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "its own clips, telephone band": as_telephone,
    "its own clips, wrong sample rate": at_wrong_rate,
    "its own clips, transposed": transpose,
    "its own clips, power": to_power,
    "its own clips, frames shuffled": shuffle,
}


# --- the table ----------------------------------------------------------------------------------


def read_corpus(text: str) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    name, _, folder = text.partition("=")
    if not folder:
        raise InputError(f"{text}: expected NAME=FOLDER")
    frame, _ = read_labels(Path(folder, "dataset.csv"))
    clips = [read_spectrogram(Path(folder, "Spectrograms", f"{i}.npy")) for i in frame["id"]]
    return name, (np.stack(clips), frame["participant"].to_numpy(str))


def share(known: familiarity.Familiarity, clips: np.ndarray | list) -> float:
    """Of clips, how many have no verdict."""
    return float(np.mean([not familiarity.is_answerable(known, clip) for clip in clips]))


def refused_unseen(clips: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """The share of clips of people left out in turn, of whole clips and of their first halves."""
    whole, halves = [], []
    for rest, held in GroupKFold(min(12, len(set(people)))).split(clips, groups=people):
        known = familiarity.fit(clips[rest], people[rest])
        whole += [not familiarity.is_answerable(known, clip) for clip in clips[held]]
        parts = map(familiarity.halve, clips[held])
        halves += [familiarity.score(known, part, repeated=True) > 1 for part in parts]
    return float(np.mean(whole)), float(np.mean(halves))


def refused_short() -> float:
    """Of recordings of 1, 2 and 3 s, how many are refused, whatever the weights."""
    refused = 0
    for seconds in (1, 2, 3):
        try:
            check_length(seconds * RATE, len(SECONDS), RATE)
        except InputError:
            refused += 1
    return refused / 3


def fill_column(name: str, corpora: Corpora, sounds: dict[str, list]) -> dict[str, str]:
    """The cells of the weights trained on one corpus, by row."""
    clips, people = corpora[name]
    known = familiarity.fit(clips, people)
    if known is None:
        raise InputError(f"{name}: too few clips or people")
    whole, halves = refused_unseen(clips, people)
    cells = {"unseen people of the same corpus": whole, "the same, 4 s repeated": halves}
    for other, (strange, _) in corpora.items():
        cells[other] = None if other == name else share(known, strange)
    cells |= {kind: share(known, those) for kind, those in sounds.items()}
    few = clips[:: max(len(clips) // 50, 1)]
    for kind, change in CHANGES.items():
        cells[kind] = share(known, [change(clip) for clip in few])
    cells["1 to 3 s of speech"] = refused_short()
    return {kind: "" if cell is None else f"{cell:.1%}" for kind, cell in cells.items()}


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", metavar="NAME=FOLDER", nargs="+")
    corpora = dict(map(read_corpus, parser.parse_args().corpora))
    rng = np.random.default_rng(0)
    sounds = {
        kind: [log_mel(make(rng).astype(np.float32)) for _ in range(COUNT)]
        for kind, make in SOUNDS.items()
    }
    columns = {name: fill_column(name, corpora, sounds) for name in corpora}
    print("# Share of clips without a verdict\n")
    print("Made by `benchmarks/familiarity.py`. Columns: what the weights were trained on. Of each")
    print(f"sound that is no speech {COUNT} clips, of clips that are changed about 50.\n")
    print(f"| fed | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for kind in next(iter(columns.values())):
        print(f"| {kind} | {' | '.join(column[kind] for column in columns.values())} |")


if __name__ == "__main__":
    run(main)
