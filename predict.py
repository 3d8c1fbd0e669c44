"""Predicts the probability of Depressed for clips or recordings, by one model or an ensemble.

    python predict.py Spectrograms --csv predictions.csv
    python predict.py interview.wav --weights old/*.safetensors
    python predict.py other/Spectrograms --labels other/dataset.csv

Shapes: N clips, M mel bins, T frames, n samples.
"""

import argparse
import csv
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from common import list_networks, load_weights, predict_logits
from speech.audio import SETTINGS, SOUND, list_files, log_mel, read_sound
from speech.cli import (
    InputError,
    Parser,
    is_stream,
    open_for_writing,
    print_lines,
    run,
    show_controls,
)
from speech.dataset import (
    looks_linear,
    min_max,
    quote_formulas,
    read_labels,
    read_shape,
    read_spectrogram,
)
from speech.device import reuse_freed_memory, suit_threads
from speech.familiarity import LEAST_SOUND, fill, score, share_of_sound
from speech.hub import fetch
from speech.labelled import match_labels
from speech.metadata import hash_participant, makes_shape
from speech.report import CLASS_NAMES, format_summary, summarize_predictions
from speech.verdict import NO_VERDICT, SURE, UNCERTAIN, Row
from speech.words import NOT_CHECKED, NOTICE
from speech.words import SYNTHETIC as SYNTHETIC_NOTICE

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from tqdm import tqdm

UNLIKE = "unlike the training clips, {} times the limit"
SILENT = "mostly silence"
REPEATED = "of a clip's length, repeated to fill it"
SHORT = "{}; at least {} are needed, better {}"
LINEAR = "almost all values next to 0, as mel power has: expected dB"
FAR = 1000  # times the limit: beyond it the number says nothing
CLIPS_AT_ONCE = 32  # rows are written while files are read, and memory stays flat
PATCHES = (6, 8)  # bands of mel bins, stretches of frames: 21 bins by 1 s of a (128, 251) clip
MAX_SECONDS = 7200  # of one recording; an hour of samples takes 230 MB
WEIGHTS = "[!.]*.safetensors"  # not the hidden ._ twins that a Mac leaves on other disks
READABLE = re.compile(rf"(?i)(?:\.npy|{SOUND})$")

Models = list[tuple[torch.nn.Module, dict]]  # each with its metadata
Band = tuple[float, float]  # of probabilities
Tick = Callable[[int, float], object]  # of clips made and seconds decoded


class Window(NamedTuple):
    """A clip that is to be classified, or a file that cannot be read."""

    name: str
    participant: str
    note: str
    clip: np.ndarray | None  # (M, T)
    start: float = 0.0  # seconds, within its file


# --- weights ------------------------------------------------------------------------------------


def find_weights(paths: list[str] | None = None) -> list[Path]:
    """The weights named, otherwise those in weights/, otherwise the example's.

    Args:
        paths: files, folders of them, or hf:USER/MODEL[@REVISION].
    """
    for folder in ("weights", Path(__file__).parent / "examples"):
        paths = paths or sorted(Path(folder).glob(WEIGHTS))
    return [file for path in paths for file in expand_weights(path)]


def expand_weights(path: str | Path) -> list[Path]:
    """The files that a path names: itself, a folder's, or a model's on the Hub."""
    if not Path(path).is_dir():
        return fetch(path)
    if found := sorted(Path(path).glob(WEIGHTS)):
        return found
    raise InputError(f"{path}: a folder without .safetensors")


def load_models(paths: list[Path]) -> Models:
    """Loads the weights of an ensemble; InputError if there are none or they do not match."""
    if not paths:
        raise InputError("no weights/*.safetensors: the training scripts, train_*.py, write them")
    models = [load_weights(path) for path in paths]
    for path, (_, metadata) in zip(paths, models, strict=True):
        for name in ("shape", "preprocessing"):
            found, expected = metadata[name], models[0][1][name]
            if found != expected:
                advice = "name with --weights those that go together"
                raise InputError(f"{path}: {name} {found}, but {paths[0]} has {expected}: {advice}")
    for network in (network for model, _ in models for network in list_networks(model)):
        network.fold()
    return models


def notice(models: Models) -> str:
    """What accompanies every prediction."""
    facts = [metadata for _, metadata in models]
    parts = {
        NOTICE: True,
        SYNTHETIC_NOTICE: any(metadata["data"]["synthetic"] for metadata in facts),
        NOT_CHECKED: not all(metadata["familiarity"] for metadata in facts),
    }
    return " ".join(text for text, holds in parts.items() if holds)


# --- clips --------------------------------------------------------------------------------------


def no_tick(_clips: int = 0, _seconds: float = 0.0) -> None:
    """Nobody watches the work."""


def cut_windows(array: np.ndarray, length: int) -> tuple[list[np.ndarray], list[int], str]:
    """Cuts (..., n) into (..., length), the last aligned to the end; repeats what is shorter.

    Padded with silence, 4 s of a clip moved the probability by .22 in the mean, repeated by .09
    (LSTM, ravdess12, held-out folds): the verdict must not follow the length.

    Returns:
        The windows, where each starts, and a note if what is there was repeated.
    """
    extra = array.shape[-1] - length
    if extra < 0:
        return [fill(array, length)], [0], f"{array.shape[-1] / length:.0%} {REPEATED}"
    starts = [*range(0, extra, length), extra]
    return [array[..., start : start + length] for start in starts], starts, ""


def check_length(length: int, whole: int, per_second: float | None) -> None:
    """InputError unless there is half a clip of sound.

    Args:
        length: of what is there, in samples or frames.
        whole: a clip's length, likewise.
        per_second: how many of them there are; None is not known.
    """
    if 2 * length >= whole:
        return
    if per_second is None:
        raise InputError(SHORT.format(f"{length} frames", math.ceil(whole / 2), whole))
    there = math.floor(length / per_second * 10) / 10  # 3.97 s are not 4.0
    needed, better = (f"{round(n / per_second, 1):g} s" for n in (whole / 2, whole))
    raise InputError(SHORT.format(f"{there:.1f} s", needed, better.removesuffix(" s")))


def read_recording(path: str | Path, rate: int, notes: list[str], tick: Tick) -> np.ndarray:
    """All samples (n,) at `rate` Hz; InputError if there are more than MAX_SECONDS of them.

    Args:
        notes: takes what the user should know of how it was read.
    """
    content = bytearray()  # grows in its place: blocks, to be joined, would take twice the memory
    for block in read_sound(path, rate, stop=MAX_SECONDS + 1, notes=notes):
        tick(0, len(block) / rate)
        content += block.astype(np.float32, copy=False).data
    samples = np.frombuffer(content, np.float32)
    if len(samples) > MAX_SECONDS * rate:
        raise InputError(f"longer than {MAX_SECONDS / 3600:g} hours: cut it")
    return samples


def check_bins(found: tuple[int, int], shape: tuple[int, int]) -> None:
    """InputError, before it is read, if a spectrogram has not the training clips' bins.

    Args:
        shape: (M, T) of the training clips.
    """
    expected = f"expected clips of {shape} (mel bins, frames), found"
    if found[0] != shape[0] and found[1] == shape[0]:
        raise InputError(f"{expected} {found}: transposed? Save its .T")
    if found[0] != shape[0]:
        raise InputError(f"{expected} {(found[0], shape[1])}")


def read_input(
    source: str | Path | bytes, metadata: dict, tick: Tick = no_tick
) -> tuple[np.ndarray, np.ndarray, str]:
    """Makes clips of a .npy (its path or bytes) or a recording, as they were made for training.

    Args:
        tick: called with 1 and 0 for every clip, and while a recording is decoded with 0 and the
            seconds of each block; what it raises ends the work.

    Returns:
        Clips (N, M, T), float32 in [0, 1]; the seconds (N,) at which they start; a note or "".

    Raises:
        InputError: unreadable, silent, too long, too short, or of another shape.
    """
    shape, sound = tuple(metadata["shape"]), metadata["preprocessing"]["sound"]
    settings, notes = sound or SETTINGS, []
    rate = settings["sample_rate"]
    if isinstance(source, bytes) or Path(source).suffix.lower() == ".npy":
        check_bins(read_shape(source), shape)
        array, length, make_clip = read_spectrogram(source), shape[1], min_max
        step = settings["hop_length"]  # samples from one column of `array` to the next
        per_second = rate / step if makes_shape(settings, shape) else None
        notes += [LINEAR] if looks_linear(array) else []
    else:
        array, length, step = (
            read_recording(source, rate, notes, tick),
            settings["clip_seconds"] * rate,
            1,
        )
        make_clip, per_second = partial(log_mel, settings=settings), rate
        notes += [] if sound else [f"{rate} Hz assumed, the weights do not say"]
    check_length(array.shape[-1], length, per_second)
    windows, starts, repeated = cut_windows(array, length)
    clips = {}
    for window, start in zip(windows, starts, strict=True):
        tick(1, 0.0)
        with suppress(InputError):  # a silent one
            clips[start * step / rate] = make_clip(window)
    if not clips:
        raise InputError("silent")
    stack = np.stack(list(clips.values()))
    if stack.shape[1:] != shape:
        raise InputError(f"expected clips of {shape} (mel bins, frames), found {stack.shape[1:]}")
    silent = len(windows) - len(clips)
    notes += [repeated, f"{silent} silent clips skipped" if silent else ""]
    return stack, np.array(list(clips)), "; ".join(filter(None, notes))


def list_inputs(inputs: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The files named, and the clips and recordings in the folders named; each once, and a note."""
    once, count = {}, 0
    for source in inputs:
        files = [source] if source.is_file() else list_files(source).values()
        found = [path for path in files if path == source or READABLE.search(path.name)]
        if not found:
            what = "no .npy and no recording there" if source.exists() else "no such file or folder"
            raise InputError(f"{source}: {what}")
        count += len(found)
        for path in found:
            once.setdefault(path.resolve(), path)
    repeated = f"{count - len(once)} files are named more than once, and read once"
    return list(once.values()), [repeated] if count > len(once) else []


# --- prediction ---------------------------------------------------------------------------------


def watched(batches: list[torch.Tensor], tick: Tick) -> Iterator[torch.Tensor]:
    for batch in batches:
        tick(0, 0.0)
        yield batch


def predict_log_odds(
    models: Models, clips: Iterable[np.ndarray], tick: Tick = no_tick
) -> list[np.ndarray]:
    """Of each model the log-odds of Depressed by its K networks, (K, N) float64.

    Args:
        tick: called before each batch of each network; what it raises ends the work.
    """
    suit_threads()
    clips = iter(clips)
    batches = iter(lambda: list(islice(clips, CLIPS_AT_ONCE)), [])
    batches = [torch.from_numpy(np.stack(batch)) for batch in batches]
    found = []
    for model, metadata in models:
        networks = list_networks(model)
        logits = [predict_logits(network, watched(batches, tick)) for network in networks]
        found.append(np.array(logits, float) @ [-1, 1] / metadata["temperature"])
        if not np.isfinite(found[-1]).all():  # finite weights can still overflow
            raise InputError("the weights give non-finite logits: damaged? train them again")
    return found


def mean_probability(log_odds: list[np.ndarray]) -> np.ndarray:
    """Probability of Depressed, (N,): the mean of models, each the mean of its networks."""
    return expit(np.mean([networks.mean(axis=0) for networks in log_odds], axis=0))


def measure_spread(log_odds: list[np.ndarray]) -> np.ndarray | None:
    """Standard deviation of the networks' probabilities, (N,); None of a single network."""
    networks = np.concatenate(log_odds)
    return expit(networks).std(axis=0) if len(networks) > 1 else None


def predict_probabilities(
    models: Models, clips: Iterable[np.ndarray], tick: Tick = no_tick
) -> np.ndarray:
    """Probability of Depressed, (N,) float64, by the mean of the temperature-scaled logits."""
    return mean_probability(predict_log_odds(models, clips, tick))


def format_probability(probability: float) -> str:
    """As text shows it, "63%"; certainty is none of a model's, so it ends at "over 95%"."""
    if not SURE <= probability <= 1 - SURE:
        return f"under {SURE:.0%}" if probability < SURE else f"over {1 - SURE:.0%}"
    return f"{probability:.0%}"


def explain_refusal(models: Models, clip: np.ndarray, note: str = "") -> str:
    """Why a clip (M, T) has no verdict, "" if it has one; any model of an ensemble can refuse it.

    Args:
        note: read_input's, which says whether the clip is a shorter one, repeated.
    """
    if share_of_sound(clip) < LEAST_SOUND:
        return SILENT
    known = [metadata.get("familiarity") for _, metadata in models]
    far = max((score(one, clip, REPEATED in note) for one in known if one), default=0)
    if not far > 1:
        return ""
    return UNLIKE.format(f"{math.ceil(10 * far) / 10:.1f}" if far < FAR else f"over {FAR}")


def verdict(probability: float, uncertain: Band = UNCERTAIN) -> str:
    low, high = uncertain
    return "uncertain" if low <= probability <= high else CLASS_NAMES[int(probability > high)]


def explain(models: Models, clip: np.ndarray, tick: Tick = no_tick) -> np.ndarray:
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
    *silenced, whole = predict_probabilities(models, variants, tick)
    return (whole - np.array(silenced)).reshape(len(bands), len(stretches))


def name_people(paths: Iterable[Path]) -> dict[Path, str]:
    """Whose each file is: the part of its name before _clip_, and its folder where several hold
    such a person: alice/interview.wav and bob/interview.wav are two people.
    """
    people = {path: show_controls(path.stem).split("_clip_")[0] for path in paths}
    folders = {}
    for path, person in people.items():
        folders.setdefault(person, set()).add(path.parent)
    apart = {person for person, where in folders.items() if len(where) > 1}
    return {
        path: show_controls(f"{path.parent.as_posix()}/") + person if person in apart else person
        for path, person in people.items()
    }


def read_windows(
    paths: Iterable[Path],
    metadata: dict,
    tick: Tick = no_tick,
    people: dict[Path, str] | None = None,
) -> Iterator[Window]:
    """Yields the windows of files, one after the other; the clip of a bad file is None.

    Args:
        people: whose each file is, as name_people finds them.
    """
    for path in paths:
        name = show_controls(path.stem)  # Linux allows any bytes in names
        person = people[path] if people else name.split("_clip_")[0]
        try:
            clips, starts, note = read_input(path, metadata, tick)
        except InputError as error:
            yield Window(name, person, str(error), None)
            continue
        clip = path.suffix.lower() == ".npy" or "_clip_" in name
        whole = len(clips) == 1 and clip  # it has a clip's name: S014_clip_0.wav too
        for clip, start in zip(clips, starts, strict=True):
            title = name if whole else f"{name}_clip_{round(start, 1):g}"
            yield Window(title, person, note, clip, float(start))


def predict(
    models: Models,
    paths: Iterable[Path],
    uncertain: Band = UNCERTAIN,
    people: dict[Path, str] | None = None,
) -> Iterator[Row]:
    """Yields the rows of the clips as they come, then those of the participants."""
    windows = read_windows(paths, models[0][1], people=people)
    yield from predict_windows(models, windows, uncertain)


def predict_windows(
    models: Models, windows: Iterator[Window], uncertain: Band = UNCERTAIN, tick: Tick = no_tick
) -> Iterator[Row]:
    """As predict, of what read_windows yields."""
    people = {}
    while batch := list(islice(windows, CLIPS_AT_ONCE)):
        clips = [window.clip for window in batch if window.clip is not None]
        log_odds = predict_log_odds(models, clips, tick)
        probabilities = iter(mean_probability(log_odds).tolist())
        spread = measure_spread(log_odds)
        spreads = iter([None] * len(clips) if spread is None else spread.tolist())
        for name, person, note, clip, _ in batch:
            if clip is None:
                yield Row(name, person, None, "error", note)
                continue
            probability, reason = next(probabilities), explain_refusal(models, clip, note)
            word = NO_VERDICT if reason else verdict(probability, uncertain)
            notes = "; ".join(filter(None, (reason, note)))
            row = Row(name, person, probability, word, notes, next(spreads))
            people.setdefault(person, []).append(row)
            yield row
    for person, rows in people.items():
        yield summarize_person(person, rows, uncertain)


def summarize_person(person: str, clips: list[Row], uncertain: Band) -> Row:
    """The mean of a participant's clips that have a verdict; none if most of them have none."""
    kept = [row for row in clips if row.verdict != NO_VERDICT]
    refused = len(clips) - len(kept)
    unsure = refused > len(kept)
    used = clips if unsure else kept
    mean = float(np.mean([row.probability for row in used]))
    spreads = [row.spread for row in used if row.spread is not None]
    spread = float(np.mean(spreads)) if spreads else None
    if unsure:
        note = f"{refused} of {len(clips)} without a verdict"
        return Row("", person, mean, NO_VERDICT, note, spread)
    note = f"mean of {len(kept)}" + (f", {refused} without a verdict left out" if refused else "")
    return Row("", person, mean, verdict(mean, uncertain), note, spread)


# --- the command line ---------------------------------------------------------------------------


@contextmanager
def open_output(path: Path | None, width: int = 0) -> Iterator[Callable[[Row], object]]:
    """Yields what writes a row: into a CSV file, or on the terminal, names `width` wide."""
    if not path:
        line = f"{{:<{width}}}  {{:>11}}  {{:>6}}  {{:<13}}  {{}}".format
        show = tqdm.external_write_mode()(print_lines)
        show(line("clip or participant", "probability", "spread", "verdict", "note"))

        def write(row: Row) -> None:
            shown = row.probability is not None and row.verdict != NO_VERDICT
            probability = format_probability(row.probability) if shown else ""
            spread = f"{row.spread:.0%}" if shown and row.spread is not None else ""
            name = row.clip or row.participant
            text = line(name, probability, spread, row.verdict, row.note)
            show(text.rstrip())

        yield write
        return
    with open_for_writing(path) as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        yield lambda row: writer.writerow(quote_formulas(row))


def score_against_labels(rows: list[Row], labels: pd.DataFrame, models: Models, path: Path) -> str:
    """The report's table of the clips that have a label: their own, or their recording's."""
    clips = [row for row in rows if row.clip and row.probability is not None]
    known = match_labels(rows, labels)
    if known.empty:
        called = f": clips have names such as {clips[0].clip!r}" if clips else ""
        ids = f"no clip has one of its ids, such as {labels['id'][0]!r}"
        raise InputError(f"{path}: {ids}{called}")
    lines = [format_summary(f"Scored by {path}", summarize_predictions(known))]
    trained_on = {person for _, metadata in models for person in metadata["data"]["seen"]}
    seen = known[known["participant"].map(hash_participant).isin(trained_on)]
    if len(seen):
        whose = f"{len(seen)} clips of {seen['participant'].nunique()} participants"
        lines.append(f"the score is optimistic: {whose} have ids that the weights were trained on")
    if missing := len(clips) - len(known):
        lines.append(f"{missing} clips have no label and are not scored")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("inputs", metavar="INPUT", type=Path, nargs="+", help=".npy, recording, or a folder")
    weights = "or hf:USER/MODEL; several are an ensemble (default: weights/*, otherwise examples/*)"
    add("--weights", metavar="FILE", nargs="+", help=weights)
    add("--csv", metavar="FILE", type=Path, help="instead of a table; also a pipe or /dev/stdout")
    ids = "id,label: scores the predictions; an id is a clip's name, or its recording's"
    add("--labels", metavar="CSV", type=Path, help=ids)
    band = "probabilities called uncertain"
    add("--uncertain", metavar=("LOW", "HIGH"), nargs=2, type=float, default=UNCERTAIN, help=band)
    args = parser.parse_args()
    if not 0 <= args.uncertain[0] <= args.uncertain[1] <= 1:
        parser.error("argument --uncertain: expected 0 <= LOW <= HIGH <= 1")
    return args


def main() -> int:
    args = parse_arguments()
    reuse_freed_memory()
    models = load_models(find_weights(args.weights))
    labels, notes = read_labels(args.labels) if args.labels else (None, [])
    paths, repeats = list_inputs(args.inputs)
    # What is piped on is the table and nothing else.
    tell = partial(print_lines, file=sys.stderr if args.csv and is_stream(args.csv) else sys.stdout)
    tell(notice(models), *(f"note: {note}" for note in notes + repeats))
    rows, bar = [], tqdm(paths, unit="file", disable=None)
    with open_output(args.csv, width=10 + max(len(path.stem) for path in paths)) as write:
        for row in predict(models, bar, args.uncertain, name_people(paths)):
            write(row)
            rows.append(row)
    people, bad = sum(not row.clip for row in rows), sum(row.verdict == "error" for row in rows)
    unread = f"; {bad} files could not be read" if bad else ""
    tell(f"{len(rows) - people - bad} clips of {people} participants{unread}")
    if labels is not None:
        tell(*score_against_labels(rows, labels, models, args.labels).split("\n"))
    return 1 if bad else 0


if __name__ == "__main__":
    run(main)
