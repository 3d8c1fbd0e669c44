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

from speech.audio import (
    DATASET_COLUMNS,
    DATASET_FORMAT,
    SETTINGS,
    UnreadableSound,
    count_samples,
    cut_clips,
    hash_file,
    is_complete,
    log_mel,
    name_sound,
    read_info,
    read_notes,
    read_sound,
    warm_up,
    write_dataset,
    write_info,
    writing_dataset,
)
from speech.cli import (
    InputError,
    Parser,
    at_least,
    count_cores,
    map_processes,
    print_lines,
    run,
)
from speech.corpora import LAYOUTS, Findings, Session, account_for_sounds, read_corpus
from speech.dataset import MAX_NAME, write_clip

import numpy as np
from tqdm import tqdm

TEMPORARY = len("..1234567.tmp")  # what write_clip adds to a name until the clip is complete

# --- planning -----------------------------------------------------------------------------------


@contextmanager
def prefix_errors(path: Path) -> Iterator[None]:
    """Begins the message of an UnreadableSound with the recording's name."""
    try:
        yield
    except UnreadableSound as error:
        raise UnreadableSound(f"{name_sound(path)}: {error}") from error


def measure(session: Session, sample_rate: int) -> int:
    """Samples of speech at `sample_rate`, without decoding what libsndfile reads."""
    samples = 0
    for path, start, stop in session.turns:
        with prefix_errors(path):
            samples += count_samples(path, sample_rate, start, stop)
    return samples


def drop(session: Session, why: str, findings: Findings) -> None:
    """Takes a session out, and says why none of its recordings is used."""
    session.clips = 0
    findings.unused |= dict.fromkeys((path for path, *_ in session.turns), why)


def plan(sessions: list[Session], settings: dict, findings: Findings) -> list[Session]:
    """Counts the clips of every session; those that have none are reported and skipped."""
    taken = Counter()
    for session in sessions:
        try:
            samples = measure(session, settings["sample_rate"])
            notes = list_sound_notes(session)
        except UnreadableSound as error:
            findings.problems.append(str(error))
            drop(session, "of a session that cannot be read", findings)
            continue
        findings.notes += notes
        session.seconds = samples / settings["sample_rate"]
        session.clips = samples // (settings["sample_rate"] * settings["clip_seconds"])
        session.first = taken[session.participant]
        taken[session.participant] += session.clips
        if not session.clips:
            speech = f"{session.seconds:.1f} s of speech make no clip"
            findings.problems.append(f"{session.name}: {speech}")
            drop(session, "with too little speech for a clip", findings)
        lost = sum(stop - start for _, start, stop in session.turns if stop) - session.seconds
        if lost > 1:
            past = f"{lost:.1f} s of its turns are past the sound's end"
            findings.notes.append(f"{session.name}: {past}")
    sessions = [session for session in sessions if session.clips]
    check_names(sessions, settings)
    return sessions


def list_sound_notes(session: Session) -> list[str]:
    """What a user should know of how the session's recordings are read."""
    notes = []
    for path in dict.fromkeys(path for path, *_ in session.turns):
        with prefix_errors(path):
            notes += [f"{name_sound(path)}: {note}" for note in read_notes(path)]
    return notes


def check_names(sessions: list[Session], settings: dict) -> None:
    """Refuses names with which a clip could not be written, before hours are spent on others."""
    for session in sessions:
        size = len(os.fsencode(f"{list_ids(session, settings)[-1]}.npy")) + TEMPORARY
        if size > MAX_NAME:
            who = f"participant {session.participant[:40]!r}..., after whom clips' files are named"
            advice = f"{size - MAX_NAME} bytes too long: shorten it in a column participant"
            raise InputError(f"{session.name:.80}: {who}, is {advice}")


def advise_length(sessions: list[Session], clip_seconds: int) -> str:
    """How long the sessions are, and which --clip-seconds they allow."""
    lengths = [session.seconds for session in sessions if session.seconds]
    if not lengths or max(lengths) >= clip_seconds:
        return ""
    low, high = min(lengths), max(lengths)
    found = f"they hold {low:.1f} to {high:.1f} s of speech, a clip {clip_seconds} s"
    fits = int(low) or int(high)
    return f": {found}" + (f": try --clip-seconds {fits}" if fits else "")


def print_plan(sessions: list[Session], findings: Findings) -> None:
    heads = f"{'split':<6}{'people':>8}{'label 1':>9}{'sessions':>10}{'minutes':>9}{'clips':>8}"
    print_lines(heads)
    for split in (*sorted({session.split for session in sessions} - {None}), "all"):
        part = [session for session in sessions if split in (session.split, "all")]
        people = len({session.participant for session in part})
        depressed = len({session.participant for session in part if session.label})
        minutes, clips = sum(s.seconds for s in part) / 60, sum(s.clips for s in part)
        print_lines(f"{split:<6}{people:>8}{depressed:>9}{len(part):>10}{minutes:>9.1f}{clips:>8}")
    for line in findings.corrections:
        print_lines(f"corrected: {line}")


# --- clips --------------------------------------------------------------------------------------


def list_ids(session: Session, settings: dict) -> list[str]:
    """The ids of a session's clips: the second of the participant's speech."""
    numbers = range(session.first, session.first + session.clips)
    seconds = settings["clip_seconds"]
    return [f"{session.participant}_clip_{number * seconds}" for number in numbers]


def list_clips(session: Session, out: Path, settings: dict) -> list[Path]:
    """The files of a session's clips."""
    return [out / "Spectrograms" / f"{name}.npy" for name in list_ids(session, settings)]


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
    warm_up(settings)
    make = partial(make_clips, out=out, settings=settings)
    clips = sum(session.clips for session in todo)
    with tqdm(total=clips, unit="clip", disable=None) as bar:
        for session, (silent, problem) in zip(todo, map_processes(make, todo, jobs), strict=True):
            bar.update(session.clips)
            if problem:
                findings.problems.append(problem)
                silent_only = silent == session.clips
                why = "with silence only" if silent_only else "of a session that cannot be read"
                drop(session, why, findings)
            elif silent:
                findings.notes.append(f"{session.name}: {silent} silent clips are left out")


# --- the dataset --------------------------------------------------------------------------------


def hash_session(session: Session, by_size: bool = False) -> str:
    """Changes with all that a session's clips depend on but the settings, and its label and split.

    Args:
        by_size: as datasets of before format 3 have it; another recording of equal length passes.
    """
    turns = [
        (name_sound(path), path.stat().st_size if by_size else hash_file(path), *times)
        for path, *times in session.turns
    ]
    facts = [session.label, session.split, session.gender, session.first, turns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def hash_sessions(sessions: list[Session], settings: dict, by_size: bool = False) -> dict[str, str]:
    """By the id of each session's first clip."""
    return {list_ids(s, settings)[0]: hash_session(s, by_size) for s in sessions}


def is_old(found: dict) -> bool:
    """Whether a dataset may know its recordings by their size only."""
    return found.get("format", 1) < DATASET_FORMAT


def compare_dataset(found: dict, info: dict, sessions: list[Session]) -> str:
    """What a folder holds of the dataset that is to be made.

    Args:
        found: what its dataset.json says.
        info: what the new one is going to say.

    Returns:
        "part" (or all) of it; "part by size", if it is from before format 3 and equal in all that
        it knows; else "other".
    """
    recordings, settings = found.get("recordings"), info["settings"]
    if not isinstance(recordings, dict) or found.get("settings") != settings:
        return "other"
    # What could not be read then, and now can be, is added; nothing may differ or be gone.
    if recordings.items() <= info["recordings"].items():
        return "part"
    by_size = is_old(found) and hash_sessions(sessions, settings, by_size=True)
    return "part by size" if by_size and recordings.items() <= by_size.items() else "other"


def clear(out: Path) -> None:
    for path in (out / "dataset.csv", *(out / "Spectrograms").glob("*.npy"), out / "dataset.json"):
        path.unlink(missing_ok=True)


def make_dataset(
    out: Path, sessions: list[Session], info: dict, jobs: int, findings: Findings
) -> int:
    """Makes the dataset in `out`, or what an earlier run left to do -> number of clips."""
    settings = info["settings"]
    if is_old(read_info(out) or {}):  # tells the next run what this one was making
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
        found = {name: getattr(findings, name) for name in ("corrections", "notes", "problems")}
        write_dataset(out, rows, found | info | {"recordings": recordings})
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
        "of a folder of recordings: file,label[,participant][,gender][,split][,fold]; of a corpus: "
        "its label files or their folder, where they are not in SOURCE"
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
    add("--jobs", metavar="N", type=at_least(1), default=count_cores(), help="processes")
    add("--dry-run", action="store_true", help="print the plan, write nothing")
    add("--overwrite", action="store_true", help="delete another dataset that --out holds")
    return parser.parse_args()


def is_occupied(
    args: argparse.Namespace, sessions: list[Session], info: dict, findings: Findings
) -> bool:
    """Whether --out holds another dataset, that is to be deleted.

    Raises:
        InputError: it does, and --overwrite was not given; of a dry run it is a note.
    """
    found = read_info(args.out)
    held = "part" if found is None else compare_dataset(found, info, sessions)
    if held == "other" and not args.overwrite:
        other = f"{args.out}: holds another dataset (other sound, labels or settings)"
        findings.notes.append(f"{other}: choose another --out, or --overwrite to delete it")
        if not args.dry_run:
            raise InputError(findings.notes[-1])
    if held == "part by size" and not args.overwrite:
        known = "an earlier version knew its recordings by name and size only: its clips are kept"
        findings.notes.append(f"{args.out}: {known}; --overwrite makes them anew")
    return held != "part" and args.overwrite


def check_labels(labels: Path | None, out: Path) -> None:
    """Refuses labels that the dataset's own would replace."""
    made = out / "dataset.csv"
    if labels and labels.exists() and made.exists() and labels.samefile(made):
        found = "the run would write dataset.csv of --out over it"
        raise InputError(f"--labels {labels}: {found}: give another --out, or rename it")


def report(findings: Findings, sessions: list[Session]) -> None:
    """Prints what is worth knowing of the run, and what became of every sound file."""
    print_lines(*(f"note: {line}" for line in findings.notes))
    print_lines(*(f"problem: {line}" for line in findings.problems))
    used = (path for session in sessions if session.clips for path, *_ in session.turns)
    print_lines(account_for_sounds(findings, used))


def main() -> int:
    args, findings = parse_arguments(), Findings()
    if args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out}: a file, expected a folder")
    check_labels(args.labels, args.out)
    settings = SETTINGS | {"clip_seconds": args.clip_seconds}
    corpus, found = read_corpus(args.source, args.labels, args.layout, findings)
    sessions = plan(found, settings, findings)
    print_plan(sessions, findings)
    occupied = False
    info = {"corpus": corpus, "settings": settings, "recordings": {}}
    if sessions and not (args.dry_run and read_info(args.out) is None):  # spares it the reading
        info["recordings"] = hash_sessions(sessions, settings)
        occupied = is_occupied(args, sessions, info, findings)
    clips = sum(session.clips for session in sessions)
    if sessions and not args.dry_run:
        with writing_dataset(args.out):
            if occupied:
                clear(args.out)
            clips = make_dataset(args.out, sessions, info, args.jobs, findings)
    report(findings, sessions)
    if not clips:
        advice = advise_length(found, args.clip_seconds)
        raise InputError(f"{args.source}: none of {len(found)} sessions gave a clip{advice}")
    if not args.dry_run:
        where = f"{args.out / 'Spectrograms'}, labels in {args.out / 'dataset.csv'}"
        print_lines(f"{clips} clips in {where}")
    return 1 if findings.problems else 0


if __name__ == "__main__":
    run(main)
