"""Recordings become Spectrograms/ and dataset.csv: the participants' speech in log-mel clips.

    python prepare.py ~/DAIC-WOZ --dry-run
    python prepare.py recordings --labels labels.csv --jobs 4

Shapes: k samples of a block.
"""

import argparse
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from speech.audio import (
    DATASET_COLUMNS,
    SETTINGS,
    UnreadableSound,
    count_samples,
    cut_clips,
    is_complete,
    log_mel,
    name_sound,
    read_info,
    read_sound,
    write_dataset,
    write_info,
)
from speech.cli import InputError, Parser, at_least, check_writable, map_processes, run
from speech.corpora import LAYOUTS, Findings, Session, read_corpus
from speech.dataset import write_clip

# --- planning -----------------------------------------------------------------------------------


@contextmanager
def prefix_errors(path: Path) -> Iterator[None]:
    """Begins the message of an UnreadableSound with the recording's name."""
    try:
        yield
    except UnreadableSound as error:
        raise UnreadableSound(f"{name_sound(path)}: {error}") from error


def measure(session: Session, sample_rate: int) -> int:
    """Samples of speech at `sample_rate`, by the recordings' headers."""
    samples = 0
    for path, start, stop in session.turns:
        with prefix_errors(path):
            samples += count_samples(path, sample_rate, start, stop)
    return samples


def plan(sessions: list[Session], settings: dict, findings: Findings) -> list[Session]:
    """Counts the clips of every session; those that have none are reported and skipped."""
    taken = Counter()
    for session in sessions:
        try:
            samples = measure(session, settings["sample_rate"])
        except UnreadableSound as error:
            findings.problems.append(str(error))
            continue
        session.seconds = samples / settings["sample_rate"]
        session.clips = samples // (settings["sample_rate"] * settings["clip_seconds"])
        session.first = taken[session.participant]
        taken[session.participant] += session.clips
        if not session.clips:
            speech = f"{session.seconds:.1f} s of speech make no clip"
            findings.problems.append(f"{session.name}: {speech}")
        lost = sum(stop - start for _, start, stop in session.turns if stop) - session.seconds
        if lost > 1:
            past = f"{lost:.1f} s of its turns are past the sound's end"
            findings.notes.append(f"{session.name}: {past}")
    return [session for session in sessions if session.clips]


def print_plan(sessions: list[Session], findings: Findings) -> None:
    print(f"{'split':<6}{'people':>8}{'label 1':>9}{'sessions':>10}{'minutes':>9}{'clips':>8}")
    for split in (*sorted({session.split for session in sessions} - {None}), "all"):
        part = [session for session in sessions if split in (session.split, "all")]
        people = len({session.participant for session in part})
        depressed = len({session.participant for session in part if session.label})
        minutes, clips = sum(s.seconds for s in part) / 60, sum(s.clips for s in part)
        print(f"{split:<6}{people:>8}{depressed:>9}{len(part):>10}{minutes:>9.1f}{clips:>8}")
    for line in findings.corrections:
        print("corrected:", line)


# --- clips --------------------------------------------------------------------------------------


def list_clips(session: Session, out: Path, settings: dict) -> list[Path]:
    """The files of a session's clips, named by the second of the participant's speech."""
    seconds = settings["clip_seconds"]
    numbers = range(session.first, session.first + session.clips)
    names = [f"{session.participant}_clip_{number * seconds}.npy" for number in numbers]
    return [out / "Spectrograms" / name for name in names]


def read_speech(session: Session, sample_rate: int) -> Iterator[np.ndarray]:
    """The session's turns, one after the other, in float32 blocks (k,)."""
    for path, start, stop in session.turns:
        with prefix_errors(path):
            yield from read_sound(path, sample_rate, start, stop)


def make_clips(session: Session, out: Path, settings: dict) -> tuple[int, str]:
    """Writes a session's clips that are not complete yet -> silent clips, and what went wrong."""
    paths, silent = list_clips(session, out, settings), 0
    blocks = read_speech(session, settings["sample_rate"])
    clips = cut_clips(blocks, settings["sample_rate"] * settings["clip_seconds"])
    try:
        for path, samples in zip(paths, clips, strict=False):
            if is_complete(path, settings):
                continue
            try:
                clip = log_mel(samples, settings)
            except InputError:
                silent += 1
            else:
                write_clip(path, clip)
    except UnreadableSound as error:
        for path in paths:  # a recording is used as a whole or not at all
            path.unlink(missing_ok=True)
        return 0, str(error)
    return silent, f"{session.name}: silent" if silent == len(paths) else ""


def make_missing(
    sessions: list[Session], out: Path, settings: dict, jobs: int, findings: Findings
) -> None:
    """Makes every clip that is not complete, in `jobs` processes."""
    paths = [list_clips(session, out, settings) for session in sessions]
    done = [all(is_complete(path, settings) for path in clips) for clips in paths]
    todo = [session for session, is_done in zip(sessions, done, strict=True) if not is_done]
    if not todo:
        return
    from librosa.feature import melspectrogram  # noqa: F401 (2 s: here once, not in every process)

    make = partial(make_clips, out=out, settings=settings)
    clips = sum(session.clips for session in todo)
    with tqdm(total=clips, unit="clip", disable=None) as bar:
        for session, (silent, problem) in zip(todo, map_processes(make, todo, jobs), strict=True):
            bar.update(session.clips)
            if problem:
                findings.problems.append(problem)
            elif silent:
                findings.notes.append(f"{session.name}: {silent} silent clips are left out")


# --- the dataset --------------------------------------------------------------------------------


def hash_session(session: Session) -> str:
    """Changes with all that a session's clips and rows depend on, but for the settings."""
    turns = [(name_sound(path), path.stat().st_size, *times) for path, *times in session.turns]
    facts = [session.label, session.split, session.gender, session.first, turns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def holds_other_dataset(out: Path, info: dict) -> bool:
    """Whether `out` holds a dataset, and not a part of the one that is to be made."""
    found = read_info(out)
    if found is None:
        return False
    recordings = found.get("recordings")
    # What could not be read then, and now can be, is added; nothing may differ or be gone.
    known = isinstance(recordings, dict) and recordings.items() <= info["recordings"].items()
    return not known or found.get("settings") != info["settings"]


def clear(out: Path) -> None:
    for path in (out / "dataset.csv", *(out / "Spectrograms").glob("*.npy"), out / "dataset.json"):
        path.unlink(missing_ok=True)


def make_dataset(
    out: Path, sessions: list[Session], info: dict, jobs: int, findings: Findings
) -> int:
    """Makes the dataset in `out`, or what an earlier run left to do -> number of clips."""
    settings = info["settings"]
    check_writable(out / "Spectrograms" / "clip.npy")
    for leftover in (out / "Spectrograms").glob(".*.tmp"):  # of a run that was killed
        leftover.unlink()
    if not (out / "dataset.json").exists():  # tells the next run what this one was making
        write_info(out, info)
    make_missing(sessions, out, settings, jobs, findings)
    rows, recordings = [], {}
    for session in sessions:
        facts = {name: getattr(session, name) for name in DATASET_COLUMNS[1:]}
        paths = list_clips(session, out, settings)
        clips = [{"id": path.stem} | facts for path in paths if is_complete(path, settings)]
        if clips:
            rows += clips
            recordings[paths[0].stem] = info["recordings"][paths[0].stem]
    if rows:
        write_dataset(out, rows, vars(findings) | info | {"recordings": recordings})
    else:
        clear(out)
    return len(rows)


# --- the command line ---------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = Parser(
        description="Turns recordings into Spectrograms/, dataset.csv and dataset.json."
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=Path, help="a corpus, or a folder of recordings")
    labels = (
        "of a folder of recordings: file,label[,participant][,gender][,split]; of a corpus: its "
        "label files or their folder, where they are not in SOURCE"
    )
    add("--labels", metavar="CSV", type=Path, help=labels)
    add("--out", metavar="FOLDER", type=Path, default=".", help="where the dataset goes")
    add(
        "--clip-seconds",
        metavar="SECONDS",
        type=at_least(1, below=3601),  # up to an hour: a clip is in memory at once
        default=SETTINGS["clip_seconds"],
        help="length of a clip; the rest of a session's speech is dropped",
    )
    add("--layout", choices=LAYOUTS, help="instead of recognising it")
    add("--jobs", metavar="N", type=at_least(1), default=os.cpu_count(), help="processes")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--overwrite", action="store_true", help="delete another dataset that --out holds")
    return parser.parse_args()


def main() -> int:
    args, findings = parse_arguments(), Findings()
    settings = SETTINGS | {"clip_seconds": args.clip_seconds}
    corpus, found = read_corpus(args.source, args.labels, args.layout, findings)
    sessions = plan(found, settings, findings)
    print_plan(sessions, findings)
    recordings = {list_clips(s, args.out, settings)[0].stem: hash_session(s) for s in sessions}
    info = {"corpus": corpus, "settings": settings, "recordings": recordings}
    occupied = holds_other_dataset(args.out, info)
    if sessions and occupied and not args.overwrite:
        raise InputError(
            f"{args.out}: holds another dataset (other sound, labels or settings): "
            "choose another --out, or --overwrite to delete it"
        )
    clips = sum(session.clips for session in sessions)
    if sessions and not args.dry_run:
        if occupied:
            clear(args.out)
        clips = make_dataset(args.out, sessions, info, args.jobs, findings)
        print(f"{clips} clips in {args.out / 'Spectrograms'}, labels in {args.out / 'dataset.csv'}")
    for line in findings.notes:
        print("note:", line)
    for line in findings.problems:
        print("problem:", line)
    if not clips:
        raise InputError(f"{args.source}: none of {len(found)} sessions gave a clip")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    run(main)
