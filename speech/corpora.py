"""Corpora become sessions: who speaks when in which recording, with which label.

A layout is a row of `LAYOUTS` and a reader; the readers of DAIC-WOZ, E-DAIC, EATD, Androids and a
folder of recordings are below.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from speech.audio import SOUND, list_files, name_sound
from speech.cli import InputError, join_names, join_problems
from speech.dataset import GENDERS, SPLITS, list_problems, read_rows, read_table

Turns = list[tuple[float, float]]  # from, to in seconds


@dataclass
class Findings:
    """What a run reports to its user; a problem makes the exit status 1."""

    corrections: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


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
    first: int = 0  # number of the first clip: the participant's other sessions come before
    clips: int = 0


# --- transcripts --------------------------------------------------------------------------------

NOT_SPEECH = r"(<[^<>]*>|\[[^\[\]]*\]|<sync\W|\s)*|.*scrubbed_entry.*"  # <sync>, <laughter>, ...

# DAIC-WOZ's faults, as in adbailey1/daic_woz_process. Of 373 it says 395 to 428 s, the corpus's
# documentation 5:52 to 7:00: all of it is left out, strangers' speech costing more than silence.
INTERRUPTED = {"373": (352.0, 428.0), "444": (286.0, 387.0)}  # seconds
EARLY_TRANSCRIPTS = {"318": 34.32, "321": 3.84, "341": 6.19, "362": 16.86}  # by so many seconds


def merge(turns: Iterable[tuple[float, float]]) -> Turns:
    """Sorts turns and joins those that overlap or touch."""
    merged = []
    for start, stop in sorted(turns):
        if merged and start <= merged[-1][1]:
            start, stop = merged[-1][0], max(stop, merged.pop()[1])
        merged.append((start, stop))
    return merged


def subtract(turns: Turns, holes: Iterable[tuple[float, float]]) -> Turns:
    """What is left of the turns outside the holes."""
    for low, high in holes:
        pieces = [piece for a, b in turns for piece in ((a, min(b, low)), (max(a, high), b))]
        turns = [(start, stop) for start, stop in pieces if start < stop]
    return turns


def read_times(table: pd.DataFrame) -> Turns:
    """The turns of a table's start_time and stop_time; rows without a duration are dropped."""
    times = table[["start_time", "stop_time"]].apply(pd.to_numeric, errors="coerce")
    return merge((max(a, 0.0), b) for a, b in times.itertuples(index=False) if a < b)


def read_daic_turns(path: Path, who: str, findings: Findings) -> Turns:
    """A participant's turns, without what the interviewer says over them."""
    table = read_table(path, "start_time", "stop_time", "speaker", "value", ragged=True)
    speaker = table["speaker"].str.lower()
    speech = (speaker == "participant") & ~table["value"].str.fullmatch(NOT_SPEECH)
    interviewer = ~speaker.isin(["participant", ""])
    if not interviewer.any():
        note = "no interviewer's rows; the participant's are used as they are"
        findings.notes.append(f"{who}: {note}")
    turns = subtract(read_times(table[speech]), read_times(table[interviewer]))
    if late := EARLY_TRANSCRIPTS.get(who):
        turns = [(start + late, stop + late) for start, stop in turns]
        findings.corrections.append(f"{who}: turns moved {late} s later, to where they are heard")
    if hole := INTERRUPTED.get(who):
        turns = subtract(turns, [hole])
        seconds = f"{hole[0]:g} to {hole[1]:g} s"
        findings.corrections.append(f"{who}: left out {seconds}, an interruption")
    return turns


def read_edaic_turns(path: Path, who: str, findings: Findings) -> Turns:
    """There is no speaker column: every row is the participant."""
    table = read_table(path, "start_time", "end_time", "text", ragged=True)
    speech = ~table["text"].str.fullmatch(NOT_SPEECH)
    return read_times(table[speech].rename(columns={"end_time": "stop_time"}))


# --- layouts ------------------------------------------------------------------------------------
# A layout's reader takes all files by their path below the source, what --labels names, and the
# findings that it adds to.

Files = dict[str, Path]
TurnReader = Callable[[Path, str, Findings], Turns]
Reader = Callable[[Files, Path | None, Findings], list[Session]]
PHQ_GENDERS = {"0": "male", "1": "female"} | GENDERS  # as AVEC's label files code them
DEPRESSED_PHQ, DEPRESSED_SDS = 10, 53  # the scores from which the label is 1
HEADER_ONLY = 1000  # bytes; a WAV no larger holds no answer


def find(files: Files, pattern: str) -> Files:
    """Files whose path ends like `pattern`, by what its first group matched."""
    found = {}
    for path in files.values():
        if match := re.search(pattern + "$", path.as_posix()):
            if match[1] in found:
                raise InputError(f"{match[1]} found twice: {found[match[1]]} and {path}")
            found[match[1]] = path
    return found


def count_names(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {join_names(names)}"


def read_avec_labels(files: Files) -> pd.DataFrame:
    """AVEC's train, dev and test files in one table, with columns label and split."""
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
        names = join_names(table.loc[strange, "participant_id"])
        raise InputError(f"labels other than 0 and 1: participants {names}")
    by_score = (table["phq_score"] >= DEPRESSED_PHQ).astype(float)
    table["label"] = by_score.where(table["phq_score"].notna(), table["phq_binary"])
    # The people of test_split, which has no labels, stand in full_test_split too.
    table = table.dropna(subset="label").drop_duplicates(["participant_id", "split"])
    return table.sort_values("participant_id", kind="stable")


def read_avec(
    files: Files, labels: Path | None, findings: Findings, transcript: str, read_turns: TurnReader
) -> list[Session]:
    """DAIC-WOZ and E-DAIC: a sound and a transcript per session, labels in AVEC's files."""
    sounds = find(files, rf"/(\d+)_AUDIO{SOUND}")
    transcripts = find(files, rf"/(\d+)_{transcript}\.csv")
    people = read_avec_labels(files)
    labelled = set(people["participant_id"])
    if unlabelled := sorted(sounds.keys() - labelled):
        findings.notes.append(count_names("sessions without a label", unlabelled))
    if missing := sorted(labelled - (sounds.keys() & transcripts.keys())):
        lack = "labelled sessions lack sound or transcript"
        findings.problems.append(count_names(lack, missing))
    sessions = []
    for row in people[~people["participant_id"].isin(missing)].to_dict("records"):
        who, label, given = row["participant_id"], int(row["label"]), row["phq_binary"]
        if given == 1 - label:
            correction = f"label {given:g}, but PHQ-8 score {row['phq_score']:g}"
            findings.corrections.append(f"{who}: {correction}: the label is {label}")
        try:
            turns = [(sounds[who], *turn) for turn in read_turns(transcripts[who], who, findings)]
        except InputError as error:
            findings.problems.append(str(error))
            continue
        gender = PHQ_GENDERS.get(str(row.get("gender")).lower())
        sessions.append(Session(who, who, label, row["split"], gender, turns))
    return sessions


def read_eatd(files: Files, labels: Path | None, findings: Findings) -> list[Session]:
    """EATD-Corpus: a volunteer's three answers, as the authors cleaned them, make one session."""
    scores = find(files, r"/([tv]_\d+)/label\.txt") | find(files, r"/([tv]_\d+)/new_label\.txt")
    sessions = []
    for who, path in scores.items():
        try:
            # label.txt holds the raw score, new_label.txt the standard one.
            score = float(path.read_text()) * (1.25 if path.name == "label.txt" else 1.0)
        except ValueError as error:
            raise InputError(f"{path}: expected a number, the SDS score") from error
        answers = [
            path.with_name(f"{name}_out.wav") for name in ("positive", "neutral", "negative")
        ]
        turns = [(uncleaned_if_empty(answer, findings), 0.0, None) for answer in answers]
        split = "train" if who.startswith("t") else "val"
        sessions.append(Session(who, who, int(score >= DEPRESSED_SDS), split, None, turns))
    return sessions


def uncleaned_if_empty(cleaned: Path, findings: Findings) -> Path:
    """The cleaned recording, or the original where cleaning left nothing."""
    if cleaned.exists() and cleaned.stat().st_size > HEADER_ONLY:
        return cleaned
    original = cleaned.with_name(cleaned.name.replace("_out", ""))
    correction = f"empty or not there; {original.name} is used"
    findings.corrections.append(f"{name_sound(cleaned)}: {correction}")
    return original


def read_androids(files: Files, labels: Path | None, findings: Findings) -> list[Session]:
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
        findings.problems.append(count_names("interviews are not in audio_clip", uncut))
    no_split = "the corpus has folds, not an official split: training splits by participant"
    findings.notes.append(no_split)
    sessions = []
    for (who, task), paths in sorted(turns.items()):
        number, condition, gender = re.match(r"(\d+)_([CP])([FM])", who).groups()
        person, label, gender = f"{number}_{condition}", condition == "P", GENDERS[gender.lower()]
        parts = [(path, 0.0, None) for path in paths]
        sessions.append(Session(f"{who} {task}", person, int(label), None, gender, parts))
    return sessions


def read_folder(files: Files, labels: Path | None, findings: Findings) -> list[Session]:
    """Any recordings, named by --labels: file,label[,participant][,gender][,split]."""
    if labels is None or not labels.is_file():
        raise InputError("a folder of recordings needs --labels, a CSV with columns file and label")
    table = read_folder_labels(labels, files, findings)
    compare_files(table, files, labels, findings)
    rows = table[table["path"].notna()].astype(object)
    sessions = []
    for row in rows.where(rows.notna(), None).to_dict("records"):
        who, path = row.get("participant", row["path"].stem), row["path"]
        turns = [(path, 0.0, None)]
        facts = int(row["label"]), row.get("split"), row.get("gender")
        sessions.append(Session(name_sound(path), who, *facts, turns))
    return sessions


def read_folder_labels(labels: Path, files: Files, findings: Findings) -> pd.DataFrame:
    """A row per recording, with a column path: NaN where the recording is not there."""
    table, notes, problems = read_rows(labels, "file")
    table["path"] = table["file"].str.replace("\\", "/").map(files)
    checks = [("file", table["path"].notna() & table["path"].duplicated(), "repeats")]
    if "participant" in table:
        unusable = table["participant"].str.contains(r"^\.|[/\\]")
        checks.append(("participant", unusable, "cannot begin a file name"))
    if problems := problems + list_problems(table, checks):
        raise InputError(join_problems(str(labels), problems))
    findings.notes += notes
    return table


def compare_files(table: pd.DataFrame, files: Files, labels: Path, findings: Findings) -> None:
    """Reports rows without a recording, and recordings without a row."""
    missing = table.loc[table["path"].isna(), "file"].tolist()
    if missing:
        names = count_names(f"of {len(table)} files are not there", missing)
        if len(missing) == len(table):
            raise InputError(f"{labels}: {names}; what is there: {join_names(files, 3)}")
        findings.problems.append(f"{labels.name}: {names}")
    sounds = [name for name in files if re.search(SOUND + "$", name.lower())]
    labelled = set(table["path"])
    if unlabelled := [name for name in sounds if files[name] not in labelled]:
        findings.notes.append(count_names("recordings without a label", unlabelled))


read_daic_woz = partial(read_avec, transcript="TRANSCRIPT", read_turns=read_daic_turns)
read_edaic = partial(read_avec, transcript="Transcript", read_turns=read_edaic_turns)
# A layout's name, the files that it is recognised by, and its reader.
LAYOUTS: dict[str, tuple[str, str, Reader]] = {
    "daic-woz": ("DAIC-WOZ", "*/*_TRANSCRIPT.csv", read_daic_woz),
    "e-daic": ("E-DAIC", "*/*_Transcript.csv", read_edaic),
    "eatd": ("EATD-Corpus", "*/[tv]_*/*label.txt", read_eatd),
    "androids": ("Androids Corpus", "*-Task/*/*_[CP][FM]*.wav", read_androids),
    "folder": ("a folder of recordings", "", read_folder),
}


def recognise(files: Files, labels: Path | None) -> tuple[str, str]:
    """The layout, and the reason for it."""
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
    expected = ", ".join(f"{pattern} ({name})" for name, pattern, _ in LAYOUTS.values() if pattern)
    kinds = Counter(path.suffix or "without suffix" for path in files.values())
    found = join_names(f"{n} {kind}" for kind, n in kinds.most_common()) or "no file"
    raise InputError(f"no layout recognised: expected {expected}, or --labels; found {found}")


def read_corpus(
    source: Path, labels: Path | None, layout: str | None, findings: Findings
) -> tuple[str, list[Session]]:
    """The corpus's name and its sessions; prints which layout it has, and why."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; expected a corpus or recordings")
    if labels and not labels.exists():
        raise InputError(f"--labels {labels}: no such file")
    files = list_files(source.resolve())
    layout, reason = (layout, "--layout") if layout else recognise(files, labels)
    name, _, read = LAYOUTS[layout]
    print(f"{source}: {name} ({reason})")
    if labels and layout != "folder":
        beside = labels.resolve().glob("*.csv") if labels.is_dir() else [labels.resolve()]
        files |= {str(path): path for path in beside if path not in files.values()}
    sessions = read(files, labels, findings)
    splits = Counter(who for who, _ in {(s.participant, s.split) for s in sessions})
    if split_twice := sorted(who for who, n in splits.items() if n > 1):
        raise InputError(count_names("participants are in more than one split", split_twice))
    return source.resolve().name if layout == "folder" else name, sessions
