"""Clips or recordings in, each one's probability of Depressed out, by one model or an ensemble.

    python predict.py Spectrograms --csv predictions.csv
    python predict.py interview.wav --weights weights/lstm.safetensors
    python predict.py other/Spectrograms --labels other/dataset.csv

Shapes: N clips, M mel bins, T frames.
"""

import argparse
import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from tqdm import tqdm

import prepare
import report
from common import (
    CLASS_NAMES,
    NOTICE,
    SYNTHETIC_NOTICE,
    fingerprint,
    keep_memory,
    load_weights,
    predict_logits,
)
from dataset import (
    InputError,
    Parser,
    check_writable,
    min_max,
    read_labels,
    read_spectrogram,
    run,
    write_atomically,
)

UNCERTAIN = (0.4, 0.6)
CLIPS_AT_ONCE = 32
PATCHES = (6, 8)  # bands of mel bins, stretches of frames: 48 patches
MAX_SECONDS = 7200  # of one recording; an hour of samples takes 230 MB
READABLE = re.compile(rf"(?i)(?:\.npy|{prepare.SOUND})$")


# --- weights ------------------------------------------------------------------------------------


def find_weights(paths: list | None = None) -> list[Path]:
    """The weights named, else those in weights/, else the example's, of synthetic voices."""
    example = Path(__file__).parent / "examples" / "lstm.safetensors"
    found = paths or sorted(Path("weights").glob("*.safetensors")) or [example] * example.exists()
    return [Path(path) for path in found]


def load_models(paths: list) -> list[tuple]:
    """(model, metadata) of each path; InputError if there is none or they make no ensemble."""
    if not paths:
        raise InputError("no weights/*.safetensors: python train_lstm.py makes them")
    models = [load_weights(path) for path in paths]
    for path, (_, metadata) in zip(paths, models, strict=True):
        for name in ("shape", "preprocessing"):
            found, expected = metadata[name], models[0][1][name]
            if found != expected:
                raise InputError(f"{path}: {name} {found}, but {paths[0]} has {expected}")
    return models


def notice(models: list[tuple]) -> str:
    """What is said with every prediction."""
    synthetic = any(metadata["data"]["synthetic"] for _, metadata in models)
    return f"{NOTICE} {SYNTHETIC_NOTICE}" if synthetic else NOTICE


# --- clips --------------------------------------------------------------------------------------


def windows(array: np.ndarray, length: int) -> tuple[list[np.ndarray], list[int], str]:
    """Cuts (..., n) into (..., length), the last aligned to the end; pads what is shorter.

    Returns:
        The windows, where each starts, and a note if silence was added.
    """
    extra = array.shape[-1] - length
    if extra < 0:
        padding = [(0, 0)] * (array.ndim - 1) + [(0, -extra)]
        note = f"{array.shape[-1] / length:.0%} of a clip's length, padded with silence"
        return [np.pad(array, padding)], [0], note
    starts = [*range(0, extra, length), extra]
    return [array[..., start : start + length] for start in starts], starts, ""


def read_input(source: str | Path | bytes, metadata: dict) -> tuple[np.ndarray, np.ndarray, str]:
    """Makes clips of a .npy (its path or bytes) or a recording, as they were made for training.

    Returns:
        Clips (N, M, T), float32 in [0, 1]; the seconds (N,) at which they start; a note or "".

    Raises:
        InputError: unreadable, silent, too long, or of another shape.
    """
    shape, sound = tuple(metadata["shape"]), metadata["preprocessing"]["sound"]
    settings = sound or prepare.SETTINGS
    rate, step, notes = settings["sample_rate"], settings["hop_length"], []
    if isinstance(source, bytes) or Path(source).suffix.lower() == ".npy":
        array, length, make_clip = read_spectrogram(source), shape[1], min_max
    else:
        blocks = prepare.read_sound(source, rate, stop=MAX_SECONDS + 1)
        array, step = np.concatenate(list(blocks)), 1
        if len(array) > MAX_SECONDS * rate:
            raise InputError(f"longer than {MAX_SECONDS / 3600:g} hours: cut it")
        length = settings["clip_seconds"] * rate
        make_clip = partial(prepare.log_mel, settings=settings)
        notes += [] if sound else [f"{rate} Hz assumed, the weights do not say"]
    pieces, starts, note = windows(array, length)
    clips = {}
    for piece, start in zip(pieces, starts, strict=True):
        with suppress(InputError):  # a silent one
            clips[start * step / rate] = make_clip(piece)
    if not clips:
        raise InputError("silent")
    silent = len(pieces) - len(clips)
    notes += [note] * bool(note) + [f"{silent} silent clips left out"] * bool(silent)
    stack = np.stack(list(clips.values()))
    if stack.shape[1:] != shape:
        raise InputError(f"clips of {stack.shape[1:]} (mel bins, frames), expected {shape}")
    return stack, np.array(list(clips)), "; ".join(notes)


def list_inputs(inputs: Iterable[Path]) -> list[Path]:
    """The files named, and the clips and recordings in the folders named."""
    paths = []
    for source in inputs:
        files = [source] if source.is_file() else prepare.list_files(source).values()
        found = [path for path in files if path == source or READABLE.search(path.name)]
        if not found:
            raise InputError(f"{source}: no .npy and no recording there")
        paths += found
    return paths


# --- prediction ---------------------------------------------------------------------------------


def probabilities(models: list[tuple], clips: Iterable[np.ndarray]) -> np.ndarray:
    """Probability of Depressed, (N,) float64, by the mean of the temperature-scaled logits."""
    clips = iter(clips)
    batches = iter(lambda: list(islice(clips, CLIPS_AT_ONCE)), [])
    batches = [torch.from_numpy(np.stack(batch)) for batch in batches]
    logits = [predict_logits(model, batches) / m["temperature"] for model, m in models]
    logits = np.mean(logits, axis=0, dtype=float)
    if not np.isfinite(logits).all():  # a verdict would be made of it
        raise InputError("the weights give no number: damaged? train them again")
    return expit(logits @ [-1, 1])


def verdict(probability: float, uncertain: tuple[float, float] = UNCERTAIN) -> str:
    low, high = uncertain
    return "uncertain" if low <= probability <= high else CLASS_NAMES[int(probability > high)]


def explain(models: list[tuple], clip: np.ndarray) -> np.ndarray:
    """Occlusion: how much the probability falls when a patch of a clip (M, T) is silenced.

    Captum's would be no shorter, and calls the models twice.

    Returns:
        (m, t): one value per band of mel bins and stretch of frames, at most PATCHES of them.
    """
    bands, stretches = (
        np.array_split(np.arange(size), min(size, parts))
        for size, parts in zip(clip.shape, PATCHES, strict=True)
    )
    variants = np.repeat(clip[np.newaxis], len(bands) * len(stretches) + 1, axis=0)
    for variant, patch in zip(variants, product(bands, stretches), strict=False):
        variant[np.ix_(*patch)] = 0
    *silenced, whole = probabilities(models, variants)
    return (whole - np.array(silenced)).reshape(len(bands), len(stretches))


class Row(NamedTuple):
    """Of a clip, of a file that cannot be read, or of a participant (then `clip` is empty)."""

    clip: str
    participant: str
    probability: float | None
    verdict: str
    note: str


def read_windows(paths: Iterable[Path], metadata: dict) -> Iterator[tuple]:
    """Yields (name, participant, note, clip) per window; the clip of a bad file is None."""
    for path in paths:
        name = path.stem.encode(errors="backslashreplace").decode()  # Linux allows any bytes
        person = name.split("_clip_")[0]
        try:
            clips, starts, note = read_input(path, metadata)
        except InputError as error:
            yield name, person, str(error), None
            continue
        whole = len(clips) == 1 and path.suffix.lower() == ".npy"
        for clip, start in zip(clips, starts, strict=True):
            yield name if whole else f"{name}_clip_{round(start, 1):g}", person, note, clip


def predict(models: list[tuple], paths: Iterable[Path], uncertain=UNCERTAIN) -> Iterator[Row]:
    """Yields the rows of the clips as they come, then those of the participants: their means."""
    clips, people = read_windows(paths, models[0][1]), {}
    while some := list(islice(clips, CLIPS_AT_ONCE)):
        chances = iter(probabilities(models, [c for *_, c in some if c is not None]).tolist())
        for name, person, note, clip in some:
            if clip is None:
                yield Row(name, person, None, "error", note)
                continue
            people.setdefault(person, []).append(chance := next(chances))
            yield Row(name, person, chance, verdict(chance, uncertain), note)
    for person, chances in people.items():
        mean, note = float(np.mean(chances)), f"mean of {len(chances)}"
        yield Row("", person, mean, verdict(mean, uncertain), note)


# --- the command line ---------------------------------------------------------------------------


@contextmanager
def open_output(path: Path | None, width: int) -> Iterator:
    """Yields what writes a row: into a CSV file, or without one on the terminal."""
    if not path:
        line = f"{{:<{width}}}  {{:>11}}  {{:<13}}  {{}}".format
        tqdm.write(line("clip or participant", *Row._fields[2:]))

        def write(row):
            chance = "" if row.probability is None else f"{row.probability:.3f}"
            tqdm.write(line(row.clip or row.participant, chance, *row[3:]).rstrip())

        yield write
        return
    check_writable(path)
    with (
        write_atomically(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        formula = ("=", "+", "-", "@")  # a spreadsheet's: made text
        yield lambda row: writer.writerow(
            f"'{cell}" if str(cell).startswith(formula) else cell for cell in row
        )


def score(rows: pd.DataFrame, labels: pd.DataFrame, models: list[tuple], source: Path) -> str:
    """report.py's table of the clips that have a label: their own, or their recording's."""
    clips = rows[rows["clip"] != ""].dropna(subset="probability")
    ids = clips["clip"].where(clips["clip"].isin(labels["id"]), clips["participant"])
    known = labels.merge(clips.assign(id=ids)[["id", "probability"]], on="id")
    if known.empty:
        raise InputError(f"{source}: no clip has one of its ids, such as {labels['id'][0]!r}")
    text = report.format_summary(f"Scored by {source}", report.summarise(known))
    trained_on = {person for _, metadata in models for person in metadata["data"]["seen"]}
    met = known[known["participant"].map(fingerprint).isin(trained_on)]
    if len(met):
        text += f"\n{len(met)} clips of {met['participant'].nunique()} participants have the ids "
        text += "of people the weights were trained on: the score flatters"
    missing = len(clips) - len(known)
    return text + (f"\n{missing} clips have no label and are not scored" if missing else "")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("inputs", metavar="INPUT", type=Path, nargs="+", help=".npy, recording, or a folder")
    weights = "several are an ensemble (default: weights/*, else examples/lstm)"
    add("--weights", metavar="FILE", nargs="+", help=weights)
    add("--csv", metavar="FILE", type=Path, help="to be written, instead of a table")
    add("--labels", metavar="CSV", type=Path, help="id,label: scores the predictions")
    band = "probabilities without a verdict (default: 0.4 0.6)"
    add("--uncertain", metavar=("LOW", "HIGH"), nargs=2, type=float, default=UNCERTAIN, help=band)
    args = parser.parse_args()
    if not 0 <= args.uncertain[0] <= args.uncertain[1] <= 1:
        parser.error("argument --uncertain: expected 0 <= LOW <= HIGH <= 1")
    return args


def main() -> int:
    args = parse_arguments()
    keep_memory()
    models = load_models(find_weights(args.weights))
    labels = read_labels(args.labels) if args.labels else None
    paths = list_inputs(args.inputs)
    print(notice(models), flush=True)
    rows, bar = [], tqdm(paths, unit="file", disable=None)
    with open_output(args.csv, width=10 + max(len(path.stem) for path in paths)) as write:
        for row in predict(models, bar, args.uncertain):
            write(row)
            rows.append(row)
    rows = pd.DataFrame(rows)
    people, bad = (rows["clip"] == "").sum(), rows["probability"].isna().sum()
    unread = f"; {bad} files could not be read" if bad else ""
    print(f"{len(rows) - people - bad} clips of {people} participants{unread}")
    if labels is not None:
        print(score(rows, labels, models, args.labels))
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
