"""Synthetic voices: a dataset of people who do not exist, to try everything without any data.

    python synthetic.py --participants 48 --clips-per-participant 10 --out synthetic

A source-filter voice (Fant 1960): glottal pulses that follow an f0 contour, breath and frication,
shaped by moving formants, in syllables, phrases and pauses, heard through one person's microphone
in that person's room. Label 1 shifts what the literature reports for depressed speech (Cummins et
al. 2015; Low et al. 2020). It exercises the pipeline and says nothing about real people.

Shapes: N samples, S syllables, K short-time frames, F frequencies.
"""

import argparse
import wave
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

from speech.audio import (
    SETTINGS,
    is_complete,
    log_mel,
    read_info,
    warm_up,
    write_dataset,
    write_info,
    writing_dataset,
)
from speech.cli import (
    InputError,
    Parser,
    at_least,
    check_writable,
    count_cores,
    map_processes,
    print_lines,
    run,
    write_atomically,
)
from speech.dataset import write_clip

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.signal import lfilter
from tqdm import tqdm

RATE, SECONDS = SETTINGS["sample_rate"], SETTINGS["clip_seconds"]
TIME = np.arange(RATE * SECONDS) / RATE  # (N,)
HOP = 256  # samples: filters change every 16 ms, short beside a syllable
FRAMES = np.arange(0, len(TIME) + 1, HOP) / RATE  # (K,)
FREQUENCIES = np.fft.rfftfreq(2 * HOP, 1 / RATE)  # (F,)

# Each trait is log-normal over people: its typical value, its spread between people (standard
# deviation of the logarithm) and the shift of the logarithm at severity 1.
TRAITS = {
    "pitch": (150.0, 0.10, -0.05),  # median f0, Hz; women 1.33 times higher, men lower
    "melody": (0.16, 0.25, -0.45),  # spread of the logarithm of f0
    "rate": (4.4, 0.13, -0.42),  # syllables per second, pauses left out
    "phrase": (9.0, 0.20, -0.40),  # syllables between two pauses
    "pause": (0.45, 0.25, 0.45),  # seconds
    "level": (0.025, 0.30, -0.10),  # of the voice; 1 is full scale
    "breath": (0.10, 0.30, 0.20),  # noise beside the glottal pulses
    "tract": (1.08, 0.03, 0.00),  # factor of the formants; women 1.08 times higher, men lower
    "room": (0.001, 0.60, 0.00),  # noise of room and microphone; 1 is full scale
    "rumble": (1.0, 0.20, 0.00),  # slope of that noise
}
COLOUR_DB, COLOURS = 2.5, 6  # a microphone's response: cosines over the frequencies
VOWELS = np.array(  # F1, F2, F3 in Hz of men: i, e, a, o, u (Peterson & Barney 1952)
    [(270, 2290, 3010), (530, 1840, 2480), (730, 1090, 2440), (570, 840, 2410), (300, 870, 2240)]
)
HIGHER_FORMANTS = (3500, 4500, 5500, 6500)  # Hz
HISS = 0.3 / (1 + (4000 / (FREQUENCIES + 1)) ** 2)  # gain (F,) of fricatives and breaths
Person = namedtuple("Person", (*TRAITS, "colour"))
Syllables = namedtuple("Syllables", "onset, length, place")  # (S,) s, s, 0 to 1 within the phrase


# --- people -------------------------------------------------------------------------------------


def draw_label_and_gender(number: int, seed: int) -> tuple[int, str]:
    """A participant's label and gender: two in a row hold both labels, four all combinations."""
    rng, (pair, place) = np.random.default_rng([seed, 0, number // 4]), divmod(number % 4, 2)
    labels, genders = rng.integers(2, size=(2, 2))
    label = int(labels[pair] ^ place)
    return label, ("female", "male")[genders[label] ^ pair]


def draw_person(number: int, label: int, gender: str, signal: float, seed: int) -> Person:
    """The draws do not depend on the label: without signal it changes nothing."""
    rng = np.random.default_rng([seed, 1, number])
    severity = signal * label * rng.gamma(6) / 6  # 1 on average
    traits = {
        name: typical * np.exp(spread * rng.standard_normal() + shift * severity)
        for name, (typical, spread, shift) in TRAITS.items()
    }
    traits["pitch"] *= 1.33 if gender == "female" else 1 / 1.33
    traits["tract"] *= 1.08 if gender == "female" else 1 / 1.08
    colour = rng.normal(0, COLOUR_DB, COLOURS) / np.sqrt(np.arange(1, COLOURS + 1))
    return Person(**traits, colour=colour)


# --- sound --------------------------------------------------------------------------------------


def draw_syllables(person: Person, rng: np.random.Generator) -> Syllables:
    """Syllables in phrases, with pauses between them; the clip begins anywhere in a phrase."""
    time, phrases = -rng.uniform(0, 2), []
    while time < SECONDS:
        count = 2 + rng.poisson(max(person.phrase - 2, 0))
        length = rng.lognormal(0, 0.25, count) / person.rate
        length[-1] *= 1.4  # the last one is drawn out
        onset = time + np.cumsum(length) - length
        phrases.append((onset, length, np.linspace(0, 1, count)))
        time += length.sum() + person.pause * rng.gamma(4) / 4
    return Syllables(*np.concatenate(phrases, axis=1))


def track(time: np.ndarray, knots: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Reads lines through `heights` at the knots (P, S), P per syllable, in seconds, at `time`."""
    order = np.argsort(knots, axis=None, kind="stable")
    heights = np.broadcast_to(heights, knots.shape)
    return np.interp(time, knots.ravel()[order], heights.ravel()[order])


def draw_f0(person: Person, syllables: Syllables, rng: np.random.Generator) -> np.ndarray:
    """f0 (N,) in Hz: an accent on each syllable, a fall over each phrase, and jitter."""
    onset, length, place = syllables
    accents = rng.standard_normal(len(onset)) + 1 - 2 * place
    contour = np.interp(TIME, onset + length / 2, person.melody * accents)
    jitter = lfilter([0.1], [1, -0.99], rng.normal(0, 0.002, len(TIME)))
    return np.clip(person.pitch * np.exp(contour + jitter), 50, 500)


def glottal_pulses(f0: np.ndarray) -> np.ndarray:
    """Sums the harmonics of f0 (N,) below half the sampling rate: in closed form, no aliases."""
    half_phase = np.pi * np.cumsum(f0) / RATE + 1e-6  # never 0
    count = np.floor(0.48 * RATE / f0)
    pulses = np.sin(count * half_phase) * np.cos((count + 1) * half_phase) / np.sin(half_phase)
    return lfilter([0.05], [1, -0.95], pulses)  # -6 dB per octave


def draw_voice(person: Person, syllables: Syllables, rng: np.random.Generator) -> np.ndarray:
    """Pulses and breath (N,), swelling with each syllable; a stop or a glide before the next."""
    onset, length, place = syllables
    stress = rng.lognormal(0, 0.3, len(onset)) * (1 - 0.4 * place)
    closure = 10 ** rng.uniform(-2, -0.2, len(onset)) * (place > 0)
    one = np.ones(len(onset))
    heights = stress * np.stack([closure, one, 0.8 * one, np.append(closure[1:], 0)])
    loudness = track(TIME, onset + length * np.array([[0], [0.25], [0.75], [0.99]]), heights)
    pulses = glottal_pulses(draw_f0(person, syllables, rng))
    return loudness * (pulses + person.breath * rng.standard_normal(len(TIME)))


def draw_frication(person: Person, syllables: Syllables, rng: np.random.Generator) -> np.ndarray:
    """Noise (N,) of the fricatives, and of the breath drawn before each phrase."""
    onset, _, place = syllables
    fricative = rng.lognormal(-1, 0.5, len(onset)) * (rng.random(len(onset)) < 0.4)
    loudness = np.where(place == 0, 0.5 * person.breath, fricative)
    width = np.where(place == 0, 0.25, 0.08)  # seconds
    knots = onset + width * np.array([[-1], [-0.5], [0], [0.2]])
    loudness = track(TIME, knots, loudness * np.array([[0], [1], [0.7], [0]]))
    return loudness * rng.standard_normal(len(TIME))


def resonance(centre: float | np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Gain (F,) of a resonator at `centre` Hz, (K, F) of one that moves (K, 1)."""
    return centre**2 / np.hypot(centre**2 - FREQUENCIES**2, width * FREQUENCIES)


def draw_formants(person: Person, syllables: Syllables, rng: np.random.Generator) -> np.ndarray:
    """Gain (K, F) of the vocal tract: three formants move from vowel to vowel, four stay."""
    vowels = VOWELS[rng.integers(len(VOWELS), size=len(syllables.onset))]
    vowels = vowels * rng.normal(1, 0.05, vowels.shape)
    held = syllables.onset + syllables.length * np.array([[0.3], [0.7]])
    moving = [track(FRAMES, held, formant)[:, None] for formant in vowels.T]
    gain = 1.0
    for centre in (*moving, *HIGHER_FORMANTS):
        gain = gain * resonance(centre * person.tract, 50 + 0.06 * centre)
    return gain


def microphone(person: Person) -> np.ndarray:
    """Gain (F,) that colours all of a person's recordings."""
    angle = np.pi * np.log1p(FREQUENCIES / 300) / np.log1p(FREQUENCIES[-1] / 300)
    return 10 ** (np.cos(np.outer(angle, np.arange(1, COLOURS + 1))) @ person.colour / 20)


def spectra(sound: np.ndarray) -> np.ndarray:
    """Short-time spectra (K, F) of (N,), in Hann windows that add up to 1."""
    frames = sliding_window_view(np.pad(sound, HOP), 2 * HOP)[::HOP]
    return np.fft.rfft(frames * np.hanning(2 * HOP + 1)[:-1])


def overlap_add(spectra: np.ndarray) -> np.ndarray:
    """The sound (N,) of short-time spectra (K, F)."""
    frames = np.fft.irfft(spectra)
    return (frames[:-1, HOP:] + frames[1:, :HOP]).ravel()


def make_clip(person: Person, rng: np.random.Generator) -> np.ndarray:
    """Speaks for one clip: float32 (N,) in the 65,536 steps of a sound card, so of a WAV file."""
    syllables = draw_syllables(person, rng)
    voice = spectra(draw_voice(person, syllables, rng)) * draw_formants(person, syllables, rng)
    voice += spectra(draw_frication(person, syllables, rng)) * HISS
    room = spectra(rng.standard_normal(len(TIME))) * (1 + FREQUENCIES / 100) ** -person.rumble
    sound = overlap_add((person.level * voice + person.room * room) * microphone(person))
    return np.clip(np.round(sound * 2**15), -(2**15), 2**15 - 1).astype(np.float32) / 2**15


# --- dataset ------------------------------------------------------------------------------------


def make_row(number: int, clip: int, seed: int) -> dict:
    """A clip's row of dataset.csv."""
    label, gender = draw_label_and_gender(number, seed)
    who = f"S{number + 1:03d}"
    name = f"{who}_clip_{clip * SECONDS}"
    return {"id": name, "label": label, "participant": who, "gender": gender}


def name_files(out: Path, name: str) -> tuple[Path, Path]:
    """A clip's spectrogram and recording."""
    return out / "Spectrograms" / f"{name}.npy", out / "Recordings" / f"{name}.wav"


def is_made(out: Path, name: str, wav: bool) -> bool:
    spectrogram, recording = name_files(out, name)
    return is_complete(spectrogram) and (recording.exists() or not wav)


def write_recording(path: Path, samples: np.ndarray) -> None:
    with write_atomically(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", None))  # mono, 2 bytes per sample
        file.writeframes((samples * 2**15).astype("<i2").tobytes())


def make_files(task: tuple[int, int], out: Path, signal: float, seed: int, wav: bool) -> None:
    """Makes one clip of one participant: the same bytes in whichever process and order."""
    number, clip = task
    row = make_row(number, clip, seed)
    person = draw_person(number, row["label"], row["gender"], signal, seed)
    samples = make_clip(person, np.random.default_rng([seed, 2, number, clip]))
    spectrogram, recording = name_files(out, row["id"])
    if wav:
        write_recording(recording, samples)
    write_clip(spectrogram, log_mel(samples))


def check_unoccupied(out: Path, voices: dict) -> None:
    """Refuses a folder that holds a dataset, unless it is this one, complete or in part."""
    info = read_info(out)
    if info is not None and info.get("voices") != voices:
        found = info.get("voices", "not written by synthetic.py")
        raise InputError(f"{out} already holds another dataset ({found}): choose another --out")


def make_all(tasks: list[tuple[int, int]], jobs: int, make: Callable) -> None:
    warm_up()
    done = map_processes(make, tasks, jobs, chunk=4)
    for _ in tqdm(done, "synthetic voices", len(tasks), unit="clip", disable=None):
        pass


def make_dataset(
    out: str | Path,
    participants: int = 48,
    clips: int = 10,
    signal: float = 1.0,
    seed: int = 42,
    wav: bool = False,
    jobs: int | None = None,
) -> int:
    """Makes the dataset in `out`, or what an interrupted run left to do -> number of clips made.

    Raises:
        InputError: another dataset in `out`, a full disk.
    """
    out = Path(out)
    voices = {"participants": participants, "clips_per_participant": clips}
    voices |= {"signal": signal, "seed": seed}
    check_unoccupied(out, voices)
    rows = {task: make_row(*task, seed) for task in product(range(participants), range(clips))}
    missing = [task for task, row in rows.items() if not is_made(out, row["id"], wav)]
    if not missing and (out / "dataset.csv").exists():
        return 0
    info = {"corpus": "synthetic voices", "synthetic": True, "voices": voices}
    with writing_dataset(out):
        if wav:
            check_writable(out / "Recordings" / "clip.wav")
        write_info(out, info)
        if missing:
            make = partial(make_files, out=out, signal=signal, seed=seed, wav=wav)
            make_all(missing, jobs or count_cores(), make)
        write_dataset(out, list(rows.values()), info)
    return len(missing)


# --- the command line ---------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Makes Spectrograms/ and dataset.csv of synthetic voices.")
    add, people, clips = parser.add_argument, at_least(4, below=100_001), at_least(1, below=10_001)
    add("--participants", metavar="N", type=people, default=48, help="people; half of them label 1")
    add("--clips-per-participant", metavar="N", type=clips, default=10, help="of 8 s each")
    factor = at_least(0, float, below=5)  # beyond, a clip may hold no speech at all
    signal = "how far label 1 differs; 0: a coin's labels and no difference"
    add("--signal", metavar="FACTOR", type=factor, default=1.0, help=signal)
    add("--out", metavar="FOLDER", type=Path, default=Path("synthetic"), help="where it goes")
    add("--wav", action="store_true", help="write the sound too, in Recordings/")
    add("--seed", metavar="N", type=at_least(0), default=42, help="of people and clips")
    add("--jobs", metavar="N", type=at_least(1), default=count_cores(), help="processes")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    options = vars(args).copy()
    clips, out = options.pop("clips_per_participant"), args.out
    if not make_dataset(clips=clips, **options):
        print_lines(f"{out}: this dataset is there already, complete")
        return
    people = f"{args.participants} people, synthetic voices"
    print_lines(
        f"{out}: {clips * args.participants} clips of {people}",
        f"python train_lstm.py --spectrograms {out}/Spectrograms --labels {out}/dataset.csv",
    )


if __name__ == "__main__":
    run(main)
