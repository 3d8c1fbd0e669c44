"""Recordings become Spectrograms/ and dataset.csv: the participants' speech in log-mel clips.

    python prepare.py ~/DAIC-WOZ --dry-run
    python prepare.py recordings --labels labels.csv --jobs 4

Shapes: n samples, M mel bins, T frames.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import platform
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib.metadata import version
from itertools import repeat
from multiprocessing import parent_process
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from tqdm import tqdm

from dataset import LABELS, InputError, Parser, check_writable, min_max, run, write_atomically

# The notebooks' clips: 8 s become 8 * 16000 // 512 + 1 = 251 frames of 128 mel bins.
SETTINGS = {
    "sample_rate": 16_000,
    "n_fft": 2048,
    "hop_length": 512,
    "n_mels": 128,
    "clip_seconds": 8,
}
SAMPLES_PER_BLOCK = 2**18  # over all channels: 1 MB
SAMPLE_RATES = (1_000, 1_000_000)  # Hz; a header outside is damaged, or meant to do harm
STREAMED = 2**31 - 2**16  # bytes; a WAV written to a pipe claims more than this


# --- sound --------------------------------------------------------------------------------------


class UnreadableSound(InputError):
    """A recording that cannot be read."""


def log_mel(samples: np.ndarray, settings: dict = SETTINGS) -> np.ndarray:
    """The notebooks' spectrogram: mel power in dB below its maximum, scaled to [0, 1].

    Args:
        samples: float32 array (n,) at settings["sample_rate"].

    Returns:
        float32 array (M, T), T = n // hop_length + 1.

    Raises:
        InputError: silent.
    """
    import librosa

    if samples.min() == samples.max():
        raise InputError("silent")
    power = librosa.feature.melspectrogram(
        y=samples,
        sr=settings["sample_rate"],
        n_fft=settings["n_fft"],
        hop_length=settings["hop_length"],
        n_mels=settings["n_mels"],
    )
    return min_max(librosa.power_to_db(power, ref=np.max))


@contextmanager
def open_sound(path: str | Path):
    """Yields a soundfile.SoundFile whose header has been checked."""
    import soundfile

    try:
        with open(path, "rb"), soundfile.SoundFile(path) as file:  # open() says what is wrong
            if not file.frames:
                raise UnreadableSound("empty")
            if not SAMPLE_RATES[0] <= file.samplerate <= SAMPLE_RATES[1] or file.frames > 2**48:
                raise UnreadableSound(f"{file.frames} samples at {file.samplerate} Hz are no sound")
            cut = re.search(r"(?i)(?:data|ssnd|riff) *: (\d+) \(should be (\d+)", file.extra_info)
            if cut and int(cut[2]) < int(cut[1]) < STREAMED:
                raise UnreadableSound(f"cut short: {cut[2]} of its {cut[1]} bytes are there")
            yield file
    except OSError as error:
        raise UnreadableSound(f"cannot be read ({error.strerror})") from error
    except (RuntimeError, TypeError) as error:  # TypeError: a name ending in .raw has no header
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise UnreadableSound(f"no sound that can be read ({reason})") from error


def frame_range(file, start: float, stop: float | None) -> tuple[int, int]:
    """First and last frame of a part of a recording, as far as the recording goes."""
    last = file.frames if stop is None else min(round(stop * file.samplerate), file.frames)
    return min(round(start * file.samplerate), last), last


def read_sound(
    path: str | Path,
    sample_rate: int = SETTINGS["sample_rate"],
    start: float = 0.0,
    stop: float | None = None,
) -> Iterator[np.ndarray]:
    """Reads from `start` to `stop` seconds (or the end), mono, in blocks: memory stays flat.

    Yields:
        float32 arrays (k,) at `sample_rate`, channels averaged, resampled by soxr.

    Raises:
        UnreadableSound: not sound that libsndfile reads, empty, cut short or with NaN in it. The
            message does not name the path.
    """
    with open_sound(path) as file:
        blocks = read_blocks(file, *frame_range(file, start, stop))
        if file.samplerate != sample_rate:
            blocks = resample(blocks, file.samplerate, sample_rate)
        yield from blocks


def read_blocks(file, first: int, last: int) -> Iterator[np.ndarray]:
    file.seek(first)
    length = max(SAMPLES_PER_BLOCK // file.channels, 1)
    while first < last:  # SoundFile.blocks() repeats samples where a file is cut short
        block = file.read(min(length, last - first), dtype="float32", always_2d=True)
        if not len(block):
            raise UnreadableSound(f"cut short: {(last - first) / file.samplerate:.1f} s missing")
        if not np.isfinite(block).all():
            raise UnreadableSound("holds NaN or infinite samples")
        first += len(block)
        yield block.mean(axis=1)


def resample(blocks: Iterable[np.ndarray], rate: int, new_rate: int) -> Iterator[np.ndarray]:
    import soxr

    stream = soxr.ResampleStream(rate, new_rate, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.empty(0, np.float32), last=True)


def cut_clips(blocks: Iterable[np.ndarray], samples_per_clip: int) -> Iterator[np.ndarray]:
    """Joins blocks and cuts them into clips (samples_per_clip,); the tail is dropped."""
    rest = np.empty(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        while len(rest) >= samples_per_clip:
            yield rest[:samples_per_clip]
            rest = rest[samples_per_clip:]


# --- transcripts --------------------------------------------------------------------------------

NOT_SPEECH = r"(<[^<>]*>|\[[^\[\]]*\]|<sync\W|\s)*|.*scrubbed_entry.*"  # <sync>, <laughter>, ...

# DAIC-WOZ's faults, as in adbailey1/daic_woz_process. Of 373 it says 395 to 428 s, the corpus's
# documentation 5:52 to 7:00: all of it is left out, strangers' speech costing more than silence.
INTERRUPTED = {"373": (352.0, 428.0), "444": (286.0, 387.0)}  # seconds
EARLY_TRANSCRIPTS = {"318": 34.32, "321": 3.84, "341": 6.19, "362": 16.86}  # by so many seconds


@dataclass
class Told:
    """What a run tells its user; a problem makes the exit status 1."""

    corrections: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def name_some(names: Iterable[str], most: int = 10) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_table(path: Path, *columns: str) -> pd.DataFrame:
    """A CSV's cells as text, whatever separates them; column names in lower case."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            separator = max("\t;,", key=file.readline().count)
            file.seek(0)
            # DAIC-WOZ's transcripts, with tabs, have stray quotation marks.
            quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
            table = pd.read_csv(
                file, sep=separator, quoting=quoting, dtype=str, na_filter=False, index_col=False
            )
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: cannot be read as a table ({error})") from error
    table.columns = [str(name).strip().lower() for name in table.columns]
    if missing := [name for name in columns if name not in table]:
        expected, found = " and ".join(missing), name_some(table.columns)
        raise InputError(f"{path}: expected a column {expected}, found {found}")
    return table.fillna("").apply(lambda column: column.str.strip())


def merge(turns: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    merged = []
    for start, stop in sorted(turns):
        if merged and start <= merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged.pop()[1])
        merged.append((start, stop))
    return merged


def leave_out(turns: list[tuple], holes: Iterable[tuple]) -> list[tuple[float, float]]:
    for low, high in holes:
        pieces = [piece for a, b in turns for piece in ((a, min(b, low)), (max(a, high), b))]
        turns = [(start, stop) for start, stop in pieces if start < stop]
    return turns


def read_times(table: pd.DataFrame) -> list[tuple[float, float]]:
    times = table[["start_time", "stop_time"]].apply(pd.to_numeric, errors="coerce")
    return merge((max(a, 0.0), b) for a, b in times.itertuples(index=False) if a < b)


def read_daic_turns(path: Path, who: str, told: Told) -> list[tuple[float, float]]:
    """A participant's turns in seconds, without what the interviewer says over them."""
    table = read_table(path, "start_time", "stop_time", "speaker", "value")
    speaker = table["speaker"].str.lower()
    speech = (speaker == "participant") & ~table["value"].str.fullmatch(NOT_SPEECH)
    interviewer = ~speaker.isin(["participant", ""])
    if not interviewer.any():
        told.notes.append(f"{who}: no interviewer's rows; the participant's are used as they are")
    turns = leave_out(read_times(table[speech]), read_times(table[interviewer]))
    if late := EARLY_TRANSCRIPTS.get(who):
        turns = [(start + late, stop + late) for start, stop in turns]
        told.corrections.append(f"{who}: turns moved {late} s later, to where they are heard")
    if hole := INTERRUPTED.get(who):
        turns = leave_out(turns, [hole])
        told.corrections.append(f"{who}: left out {hole[0]:g} to {hole[1]:g} s, an interruption")
    return turns


def read_edaic_turns(path: Path, who: str, told: Told) -> list[tuple[float, float]]:
    """There is no speaker column: every row is the participant."""
    table = read_table(path, "start_time", "end_time", "text")
    speech = ~table["text"].str.fullmatch(NOT_SPEECH)
    return read_times(table[speech].rename(columns={"end_time": "stop_time"}))


# --- layouts ------------------------------------------------------------------------------------
# A layout is read by a function (files, labels, told) -> sessions: `files` maps paths below the
# source to files, `labels` is what --labels names, `told` takes what the user is to know.

SPLITS = {"train": "train", "val": "val", "dev": "val", "validation": "val", "test": "test"}
GENDERS = {"m": "male", "f": "female", "male": "male", "female": "female"}
PHQ_GENDERS = {"0": "male", "1": "female"} | GENDERS
DEPRESSED_PHQ, DEPRESSED_SDS = 10, 53  # the scores from which the label is 1
SOUND = r"\.(?:wav|flac|ogg|opus|mp3|aiff?|au|caf|w64)"


@dataclass
class Session:
    """Speech of one participant with one label: its turns are joined, then cut."""

    name: str  # in messages
    participant: str
    label: int
    split: str | None
    gender: str | None
    turns: list[tuple[Path, float, float | None]]  # from, to in seconds; None is the end
    seconds: float = 0.0  # of speech that the files hold
    first: int = 0  # how many clips of the participant stand before, in other sessions
    clips: int = 0


def list_files(source: Path) -> dict[str, Path]:
    """All files below `source` by their path from there, without macOS's hidden `._` twins."""
    files = {}
    for folder, folders, names in os.walk(source, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            files[path.relative_to(source).as_posix()] = path
    return files


def find(files: dict[str, Path], pattern: str) -> dict[str, Path]:
    """Files whose path ends like `pattern`, by what its first group matched."""
    found = {}
    for path in files.values():
        if match := re.search(pattern + "$", path.as_posix()):
            if match[1] in found:
                raise InputError(f"{match[1]} is there twice: {found[match[1]]} and {path}")
            found[match[1]] = path
    return found


def name_sound(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def read_avec_labels(files: dict[str, Path]) -> pd.DataFrame:
    """AVEC's train, dev and test files in one table, with a column split."""
    tables = []
    for name, path in find(files, r"/((?:full_)?(?:train|dev|test)_split[^/]*)\.csv").items():
        table = read_table(path, "participant_id")  # test_split writes it with a small p
        table.columns = [column.replace("phq8_", "phq_") for column in table.columns]
        tables.append(table.assign(split=SPLITS[re.search("train|dev|test", name)[0]]))
    if not tables:
        raise InputError("no train_split*.csv or dev_split*.csv: pass their folder as --labels")
    table = pd.concat(tables, ignore_index=True).query("participant_id != ''")
    for name in ("phq_score", "phq_binary"):
        table[name] = pd.to_numeric(table.get(name, np.nan), errors="coerce")
    strange = ~table["phq_binary"].isin([0, 1, np.nan])
    if strange.any():
        names = name_some(table.loc[strange, "participant_id"])
        raise InputError(f"labels other than 0 and 1: participants {names}")
    by_score = (table["phq_score"] >= DEPRESSED_PHQ).astype(float)
    table["label"] = by_score.where(table["phq_score"].notna(), table["phq_binary"])
    # The people of test_split, which has no labels, stand in full_test_split too.
    table = table.dropna(subset="label").drop_duplicates(["participant_id", "split"])
    return table.sort_values("participant_id", kind="stable")


def read_avec(files, labels, told, transcript, read_turns):
    """DAIC-WOZ and E-DAIC: a sound and a transcript per session, labels in AVEC's files."""
    sounds = find(files, rf"/(\d+)_AUDIO{SOUND}")
    transcripts = find(files, rf"/(\d+)_{transcript}\.csv")
    people = read_avec_labels(files).to_dict("records")
    labelled = {row["participant_id"] for row in people}
    if unlabelled := sorted(sounds.keys() - labelled):
        told.notes.append(f"{len(unlabelled)} sessions without a label: {name_some(unlabelled)}")
    there = sounds.keys() & transcripts.keys()
    if missing := sorted(labelled - there):
        told.problems.append(
            f"{len(missing)} labelled sessions lack sound or transcript: {name_some(missing)}"
        )
    sessions = []
    for row in people:
        who, label, given = row["participant_id"], int(row["label"]), row["phq_binary"]
        if who not in there:
            continue
        if given == 1 - label:
            score = f"PHQ-8 score {row['phq_score']:g}"
            told.corrections.append(f"{who}: label {given:g}, but {score}: the label is {label}")
        try:
            turns = [(sounds[who], *turn) for turn in read_turns(transcripts[who], who, told)]
        except InputError as error:
            told.problems.append(str(error))
            continue
        gender = PHQ_GENDERS.get(str(row.get("gender")).lower())
        sessions.append(Session(who, who, label, row["split"], gender, turns))
    return sessions


def read_eatd(files, labels, told):
    """EATD-Corpus: a volunteer's three answers, as the authors cleaned them, make one session."""
    scores = find(files, r"/([tv]_\d+)/label\.txt") | find(files, r"/([tv]_\d+)/new_label\.txt")
    sessions = []
    for who, path in scores.items():
        try:
            score = float(path.read_text()) * (1.25 if path.name == "label.txt" else 1.0)
        except ValueError as error:
            raise InputError(f"{path}: expected a number, the SDS score") from error
        answers = [
            path.with_name(f"{name}_out.wav") for name in ("positive", "neutral", "negative")
        ]
        turns = [(uncleaned_if_empty(answer, told), 0.0, None) for answer in answers]
        split = "train" if who.startswith("t") else "val"
        sessions.append(Session(who, who, int(score >= DEPRESSED_SDS), split, None, turns))
    return sessions


def uncleaned_if_empty(cleaned: Path, told: Told) -> Path:
    if cleaned.exists() and cleaned.stat().st_size > 1000:  # bytes: more than a header
        return cleaned
    original = cleaned.with_name(cleaned.name.replace("_out", ""))
    told.corrections.append(f"{name_sound(cleaned)}: empty or not there; {original.name} is used")
    return original


def read_androids(files, labels, told):
    """Androids Corpus: a person is 01_C, not 01; reading and interview are two sessions."""
    speaker = r"(?:\d+_[CP][FM]\w+)"  # 01_CF56_1: number, condition, gender, age, education
    reading = find(files, rf"/Reading-Task/\w+/({speaker})\.wav")
    turns = {(who, "reading"): [path] for who, path in reading.items()}
    # The interview as the authors cut it; interview_timedata.csv holds the same turns.
    cuts = find(files, rf"/Interview-Task/audio_clip/({speaker}/\w+)\.wav")
    for name in sorted(cuts, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        turns.setdefault((name.split("/")[0], "interview"), []).append(cuts[name])
    interviews = find(files, rf"/Interview-Task/audio/\w+/({speaker})\.wav")
    if uncut := [who for who in interviews if (who, "interview") not in turns]:
        told.problems.append(f"{len(uncut)} interviews are not in audio_clip: {name_some(uncut)}")
    told.notes.append("the corpus has folds, not an official split: training splits by participant")
    sessions = []
    for (who, task), paths in sorted(turns.items()):
        number, condition, gender = re.match(r"(\d+)_([CP])([FM])", who).groups()
        person, label, gender = f"{number}_{condition}", condition == "P", GENDERS[gender.lower()]
        parts = [(path, 0.0, None) for path in paths]
        sessions.append(Session(f"{who} {task}", person, int(label), None, gender, parts))
    return sessions


def read_folder(files, labels, told):
    """Any recordings, named by --labels: file,label[,participant][,gender][,split]."""
    if labels is None or not labels.is_file():
        raise InputError("a folder of recordings needs --labels, a CSV with columns file and label")
    table = read_table(labels, "file", "label")
    table["path"] = table["file"].str.replace("\\", "/").map(files)
    if "split" in table:
        table["split"] = table["split"].str.lower()
    check_rows(table, labels)
    missing = table.loc[table["path"].isna(), "file"].tolist()
    if missing:
        names = f"{len(missing)} of {len(table)} files are not there: {name_some(missing)}"
        if len(missing) == len(table):
            raise InputError(f"{labels}: {names}; what is there: {name_some(files, 3)}")
        told.problems.append(f"{labels.name}: {names}")
    sounds = [name for name in files if re.search(SOUND + "$", name.lower())]
    labelled = set(table["path"])
    if unlabelled := [name for name in sounds if files[name] not in labelled]:
        told.notes.append(f"{len(unlabelled)} recordings without a label: {name_some(unlabelled)}")
    sessions = []
    for row in table[table["path"].notna()].to_dict("records"):
        path, gender = row["path"], row.get("gender", "").lower()
        facts = row.get("participant") or path.stem, LABELS[row["label"].lower()]
        facts += SPLITS.get(row.get("split")), GENDERS.get(gender, gender) or None
        sessions.append(Session(name_sound(path), *facts, [(path, 0.0, None)]))
    return sessions


def check_rows(table: pd.DataFrame, labels: Path) -> None:
    """Raises InputError with all that is wrong, rows numbered as a spreadsheet shows them."""
    checks = {
        "file": (table["path"].notna() & table["path"].duplicated(), "repeats"),
        "label": (~table["label"].str.lower().isin(LABELS), "is neither 0 nor 1"),
    }
    if "split" in table:
        checks["split"] = (~table["split"].isin(SPLITS), "is not train, val or test")
    if "participant" in table:
        unusable = table["participant"].str.contains(r"^\.|[/\\]")
        checks["participant"] = (unusable, "cannot begin a file name")
    wrong = [
        f"row {row + 2}: {column} {value!r} {fault}"
        for column, (bad, fault) in checks.items()
        for row, value in table.loc[bad, column].items()
    ]
    if wrong:
        raise InputError(f"{labels}: {len(wrong)} problems: {name_some(wrong)}")


# A layout's name, the files that give it away, and its reader.
LAYOUTS = {
    "daic-woz": (
        "DAIC-WOZ",
        "*/*_TRANSCRIPT.csv",
        partial(read_avec, transcript="TRANSCRIPT", read_turns=read_daic_turns),
    ),
    "e-daic": (
        "E-DAIC",
        "*/*_Transcript.csv",
        partial(read_avec, transcript="Transcript", read_turns=read_edaic_turns),
    ),
    "eatd": ("EATD-Corpus", "*/[tv]_*/*label.txt", read_eatd),
    "androids": ("Androids Corpus", "*-Task/*/*_[CP][FM]*.wav", read_androids),
    "folder": ("a folder of recordings", "", read_folder),
}


def recognise(files: dict[str, Path], labels: Path | None) -> tuple[str, str]:
    """The layout, and why it is taken for that."""
    if labels and labels.is_file() and "file" in read_table(labels):
        return "folder", f"{labels} has a column file"
    seen = {}
    for layout, (_, pattern, _) in LAYOUTS.items():
        if alike := [path for path in files.values() if fnmatchcase(path.as_posix(), pattern)]:
            seen[layout] = f"{len(alike)} files like {name_sound(alike[0])}"
    if len(seen) == 1:
        return seen.popitem()
    if labels and not seen:
        return "folder", "--labels is given"
    if seen:
        raise InputError(f"looks like {' and '.join(seen)}: choose one with --layout")
    looked = ", ".join(f"{pattern} ({name})" for name, pattern, _ in LAYOUTS.values() if pattern)
    kinds = Counter(path.suffix or "without suffix" for path in files.values())
    found = name_some(f"{n} {kind}" for kind, n in kinds.most_common()) or "no file"
    raise InputError(f"no layout recognised: looked for {looked}, or --labels; found {found}")


def read_corpus(args, told: Told) -> tuple[str, list[Session]]:
    """The corpus's name and its sessions; prints which layout it has, and why."""
    if not args.source.is_dir():
        raise InputError(f"{args.source}: no such folder; expected a corpus or recordings")
    if args.labels and not args.labels.exists():
        raise InputError(f"--labels {args.labels}: no such file")
    source = args.source.resolve()
    files = list_files(source)
    layout, why = (args.layout, "--layout") if args.layout else recognise(files, args.labels)
    name, _, read = LAYOUTS[layout]
    print(f"{args.source}: {name} ({why})")
    if args.labels and layout != "folder":
        labels = args.labels.resolve()
        beside = labels.glob("*.csv") if labels.is_dir() else [labels]
        files |= {str(path): path for path in beside if path not in files.values()}
    sessions = read(files, args.labels, told)
    splits = Counter(who for who, _ in {(s.participant, s.split) for s in sessions})
    if torn := sorted(who for who, n in splits.items() if n > 1):
        raise InputError(f"{len(torn)} participants are in more than one split: {name_some(torn)}")
    return source.name if layout == "folder" else name, sessions


# --- clips --------------------------------------------------------------------------------------


@cache
def measure(path: Path) -> SimpleNamespace:
    """`frames` and `samplerate` of a recording, by its header."""
    with open_sound(path) as file:
        return SimpleNamespace(frames=file.frames, samplerate=file.samplerate)


@contextmanager
def naming(path: Path):
    """Begins the message of an UnreadableSound with the recording's name."""
    try:
        yield
    except UnreadableSound as error:
        raise UnreadableSound(f"{name_sound(path)}: {error}") from error


def count_samples(session: Session, sample_rate: int) -> int:
    samples = 0
    for path, start, stop in session.turns:
        with naming(path):
            sound = measure(path)
        first, last = frame_range(sound, start, stop)
        samples += round((last - first) * sample_rate / sound.samplerate)
    return samples


def read_speech(session: Session, sample_rate: int) -> Iterator[np.ndarray]:
    for path, start, stop in session.turns:
        with naming(path):
            yield from read_sound(path, sample_rate, start, stop)


def plan(sessions: list[Session], settings: dict, told: Told) -> list[Session]:
    """Counts the clips of every session; those that have none are told of and left out."""
    taken = Counter()
    for session in sessions:
        try:
            samples = count_samples(session, settings["sample_rate"])
        except UnreadableSound as error:
            told.problems.append(str(error))
            continue
        session.seconds = samples / settings["sample_rate"]
        session.clips = samples // (settings["sample_rate"] * settings["clip_seconds"])
        session.first = taken[session.participant]
        taken[session.participant] += session.clips
        if not session.clips:
            told.problems.append(f"{session.name}: {session.seconds:.1f} s of speech make no clip")
        lost = sum(stop - start for _, start, stop in session.turns if stop) - session.seconds
        if lost > 1:
            told.notes.append(f"{session.name}: {lost:.1f} s of its turns are past the sound's end")
    return [session for session in sessions if session.clips]


def list_clips(session: Session, out: Path, settings: dict) -> list[Path]:
    seconds = settings["clip_seconds"]
    numbers = range(session.first, session.first + session.clips)
    names = [f"{session.participant}_clip_{number * seconds}.npy" for number in numbers]
    return [out / "Spectrograms" / name for name in names]


def is_whole(path: Path, settings: dict) -> bool:
    """Judged by its size: after a power cut, a file that was not fsynced can be empty."""
    frames = settings["sample_rate"] * settings["clip_seconds"] // settings["hop_length"] + 1
    header = 128  # numpy's
    return path.exists() and path.stat().st_size == header + 4 * settings["n_mels"] * frames


def write_clip(path: Path, clip: np.ndarray) -> None:
    """All of a clip or nothing; not fsynced, which took as long as the clip's transform."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    buffer = io.BytesIO()  # np.save to a file does not say that the disk is full
    np.save(buffer, clip)
    try:
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); what is whole stays: run again to go on"
        ) from error


def make_clips(session: Session, out: Path, settings: dict) -> tuple[int, str]:
    """Writes the clips of a session that are not whole yet -> silent clips, and what went wrong."""
    todo, silent = list_clips(session, out, settings), 0
    blocks = read_speech(session, settings["sample_rate"])
    clips = cut_clips(blocks, settings["sample_rate"] * settings["clip_seconds"])
    try:
        for path, samples in zip(todo, clips, strict=False):
            if is_whole(path, settings):
                continue
            try:
                clip = log_mel(samples, settings)
            except InputError:
                silent += 1
            else:
                write_clip(path, clip)
    except UnreadableSound as error:
        for path in todo:
            path.unlink(missing_ok=True)
        return 0, str(error)
    return silent, f"{session.name}: silent" if silent == len(todo) else ""


def start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it, should it be killed."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)  # BLAS threads of several processes, in each other's way, halved the speed
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_parent():
        parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def make_all(sessions: list[Session], out: Path, settings: dict, jobs: int, told: Told) -> None:
    """Makes every clip that is not whole, in `jobs` processes."""

    def is_done(session):
        return all(is_whole(path, settings) for path in list_clips(session, out, settings))

    todo = [session for session in sessions if not is_done(session)]
    if not todo:
        return
    from librosa.feature import melspectrogram  # noqa: F401 (2 s: here once, not in every process)

    clips = sum(session.clips for session in todo)
    pool = ProcessPoolExecutor(min(jobs, len(todo)), initializer=start_worker)
    results = pool.map(make_clips, todo, repeat(out), repeat(settings))
    try:
        with tqdm(total=clips, unit="clip", disable=None) as bar:
            for session, (silent, problem) in zip(todo, results, strict=True):
                bar.update(session.clips)
                if problem:
                    told.problems.append(problem)
                elif silent:
                    told.notes.append(f"{session.name}: {silent} silent clips are left out")
    except BrokenProcessPool as error:
        raise InputError(
            "a process was killed, for lack of memory? Run again to go on, with fewer --jobs"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# --- the dataset's files ------------------------------------------------------------------------

COLUMNS = ("id", "label", "participant", "split", "gender")


def write_dataset(out: str | Path, rows: list[dict], info: dict) -> None:
    """Writes dataset.json and dataset.csv into `out`.

    Args:
        rows: one per clip, with `COLUMNS` as keys; a column without any value is left out.
        info: corpus, synthetic and whatever else is worth keeping; settings, versions, counts
            and corrections are added where it has none.
    """
    frame = pd.DataFrame(rows, columns=COLUMNS).dropna(axis=1, how="all")
    packages = {name: version(name) for name in ("librosa", "numpy", "soundfile", "soxr")}
    defaults = {
        "corpus": None,
        "synthetic": False,
        "settings": SETTINGS,
        "versions": {"python": platform.python_version(), **packages},
        "counts": {"clips": len(frame), "participants": frame["participant"].nunique()},
        "corrections": [],
    }
    write_json(Path(out, "dataset.json"), defaults | info)
    with write_atomically(Path(out, "dataset.csv")) as path:
        frame.to_csv(path, index=False, lineterminator="\n")


def write_json(path: Path, content: dict) -> None:
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def fingerprint(session: Session) -> str:
    """Changes with all that a session's clips and rows depend on, but for the settings."""
    turns = [(name_sound(path), path.stat().st_size, *times) for path, *times in session.turns]
    facts = [session.label, session.split, session.gender, session.first, turns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def is_free(out: Path, info: dict) -> bool:
    """Whether `out` holds no dataset, or a part of the one that is to be made."""
    try:
        found = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
        # What could not be read then, and now can be, is added; nothing may differ or be gone.
        known = found["recordings"].items() <= info["recordings"].items()
        return known and found["settings"] == info["settings"]
    except FileNotFoundError:
        clips = (out / "Spectrograms").glob("*.npy")
        return not (out / "dataset.csv").exists() and not any(clips)
    except (ValueError, LookupError, TypeError, AttributeError):  # another program's
        return False


def clear(out: Path) -> None:
    for path in (out / "dataset.csv", *(out / "Spectrograms").glob("*.npy"), out / "dataset.json"):
        path.unlink(missing_ok=True)


def make_dataset(out: Path, sessions: list[Session], info: dict, jobs: int, told: Told) -> int:
    """Makes the dataset in `out`, or what an earlier run left to do -> number of clips."""
    check_writable(out / "Spectrograms" / "clip.npy")
    for leftover in (out / "Spectrograms").glob(".*.tmp"):  # of a run that was killed
        leftover.unlink()
    if not (out / "dataset.json").exists():  # tells the next run what this one was making
        write_json(out / "dataset.json", info)
    make_all(sessions, out, info["settings"], jobs, told)
    rows, kept = [], []
    for session in sessions:
        facts = {name: getattr(session, name) for name in COLUMNS[1:]}
        paths = list_clips(session, out, info["settings"])
        clips = [path.stem for path in paths if is_whole(path, info["settings"])]
        rows += [{"id": clip} | facts for clip in clips]
        kept += [paths[0].stem] if clips else []
    if not rows:
        clear(out)
        return 0
    info["recordings"] = {name: info["recordings"][name] for name in kept}
    write_dataset(out, rows, vars(told) | info)
    return len(rows)


# --- the command line ---------------------------------------------------------------------------


def whole_number(text: str) -> int:
    if not 1 <= int(text) <= 3600:
        raise ValueError
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        description="Turns recordings into Spectrograms/, dataset.csv and dataset.json.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="a corpus, or a folder of recordings")
    add(
        "--labels",
        metavar="CSV",
        type=Path,
        help="of a folder of recordings: file,label[,participant][,gender][,split]; of a corpus: "
        "its label files or their folder, where they are not in SOURCE",
    )
    add("--out", metavar="FOLDER", type=Path, default=".", help="where the dataset goes")
    add(
        "--clip-seconds",
        metavar="SECONDS",
        type=whole_number,
        default=SETTINGS["clip_seconds"],
        help="length of a clip; the rest of a session's speech is dropped",
    )
    add("--layout", choices=LAYOUTS, help="instead of recognising it")
    add("--jobs", metavar="N", type=whole_number, default=os.cpu_count(), help="processes")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--overwrite", action="store_true", help="delete another dataset that --out holds")
    return parser.parse_args()


def print_plan(sessions: list[Session], told: Told) -> None:
    print(f"{'split':<6}{'people':>8}{'label 1':>9}{'sessions':>10}{'minutes':>9}{'clips':>8}")
    for split in (*sorted({session.split for session in sessions} - {None}), "all"):
        part = [session for session in sessions if split in (session.split, "all")]
        people = len({session.participant for session in part})
        depressed = len({session.participant for session in part if session.label})
        minutes, clips = sum(s.seconds for s in part) / 60, sum(s.clips for s in part)
        print(f"{split:<6}{people:>8}{depressed:>9}{len(part):>10}{minutes:>9.1f}{clips:>8}")
    for line in told.corrections:
        print("corrected:", line)


def main() -> int:
    args, told = parse_arguments(), Told()
    settings = SETTINGS | {"clip_seconds": args.clip_seconds}
    corpus, found = read_corpus(args, told)
    sessions = plan(found, settings, told)
    print_plan(sessions, told)
    recordings = {list_clips(s, args.out, settings)[0].stem: fingerprint(s) for s in sessions}
    info = {"corpus": corpus, "settings": settings, "recordings": recordings}
    free = is_free(args.out, info)
    if sessions and not free and not args.overwrite:
        raise InputError(
            f"{args.out}: holds another dataset (other sound, labels or settings): "
            "choose another --out, or --overwrite to delete it"
        )
    clips = sum(session.clips for session in sessions)
    if sessions and not args.dry_run:
        if not free:
            clear(args.out)
        clips = make_dataset(args.out, sessions, info, args.jobs, told)
        print(f"{clips} clips in {args.out / 'Spectrograms'}, labels in {args.out / 'dataset.csv'}")
    for line in told.notes:
        print("note:", line)
    for line in told.problems:
        print("problem:", line)
    if not clips:
        raise InputError(f"{args.source}: none of {len(found)} sessions gave a clip")
    return 1 if told.problems else 0


if __name__ == "__main__":
    run(main)
