"""Corpora become sessions: who speaks when in which recording, with which label.

A layout is a row of `LAYOUTS` and a reader; the readers of DAIC-WOZ, E-DAIC, EATD, Androids and a
folder of recordings are below.
"""

import csv
import filecmp
import io
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from speech.audio import SOUND, hash_file, list_files, match_names, name_sound
from speech.cli import InputError, join_names, join_problems, print_lines
from speech.dataset import (
    COLUMNS,
    GENDERS,
    LOST,
    SPLITS,
    check_people,
    compose,
    find_alike,
    fold_spelling,
    list_problems,
    note_both_labels,
    note_namesakes,
    read_rows,
    read_table,
    read_text,
)

import numpy as np
import pandas as pd

Turns = list[tuple[float, float]]  # from, to in seconds


@dataclass
class Findings:
    """What a run reports to its user; a problem makes the exit status 1."""

    corrections: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sounds: list[Path] = field(default_factory=list, compare=False)  # all below the source
    unused: dict[Path, str] = field(default_factory=dict, compare=False)  # of them, and why


@dataclass
class Session:
    """Speech of one participant with one label: its turns are joined, then cut."""

    name: str  # in messages
    participant: str
    label: int
    split: str | None
    gender: str | None
    turns: list[tuple[Path, float, float | None]]  # from, to in seconds; None is the end
    fold: str | None = None
    seconds: float = 0.0  # of speech that the files hold
    first: int = 0  # number of the first clip: the participant's other sessions come before
    clips: int = 0


UNNAMED = "not named as the corpus's recordings are"  # the reason where a reader gives none


def account_for_sounds(findings: Findings, used: Iterable[Path]) -> str:
    """One line: how many of the sound files are used, and why the others are not."""
    used, reasons = set(used), defaultdict(list)
    for path in findings.sounds:
        if path not in used:
            reasons[findings.unused.get(path, UNNAMED)].append(name_sound(path))
    left = sum(map(len, reasons.values()))
    total = len(findings.sounds)
    line = f"accounted for: {total} of {total} sound files: {total - left} used"
    groups = [f"{len(names)} {why} ({join_names(names, 3)})" for why, names in reasons.items()]
    return line + (f", {left} not: {', '.join(groups)}" if left else "")


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


def read_numbers(cells: pd.Series) -> pd.Series:
    """Finite numbers, else NaN; a comma is a spreadsheet's decimal one where none has a point."""
    if not cells.str.fullmatch(r"-?\d*\.\d+").any():
        cells = cells.str.replace(",", ".")
    return pd.to_numeric(cells, errors="coerce").replace([np.inf, -np.inf], np.nan)


def read_times(table: pd.DataFrame, used: pd.Series, who: str, findings: Findings) -> pd.DataFrame:
    """From and to in seconds; rows that are used but have no such times are a problem.

    Args:
        used: which rows are.
    """
    cells = table[["start_time", "stop_time"]]
    times = cells.apply(read_numbers)
    lost = used & ~(times["start_time"] <= times["stop_time"])
    if lost.any():
        start, stop = cells[lost].iloc[0]
        first = f"row {lost.idxmax() + 2} is from {start!r:.20} to {stop!r:.20}"
        problem = f"{lost.sum()} of {used.sum()} rows without times, left out: {first}"
        findings.problems.append(f"{who}: {problem}")
    return times


def join_turns(times: pd.DataFrame) -> Turns:
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
    times = read_times(table, speech | interviewer, who, findings)
    asked = join_turns(times[interviewer])
    turns = subtract(join_turns(times[speech]), asked)
    if asked:  # before the first question people talk to whoever sets the recording up
        early = sum(min(stop, asked[0][0]) - start for start, stop in turns if start < asked[0][0])
        turns = subtract(turns, [(0.0, asked[0][0])])
        if early:
            what = f"left out {early:.1f} s of speech before the interviewer's first row"
            findings.corrections.append(f"{who}: {what}")
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
    table = table.rename(columns={"end_time": "stop_time"})
    return join_turns(read_times(table, speech, who, findings)[speech])


# --- layouts ------------------------------------------------------------------------------------
# A layout's reader takes all files by their path below the source, what --labels names, and the
# findings that it adds to.

Files = dict[str, Path]
TurnReader = Callable[[Path, str, Findings], Turns]
Reader = Callable[[Files, Path | None, Findings], list[Session]]
PHQ_GENDERS = {"0": "male", "1": "female"} | GENDERS  # as AVEC's label files code them
DEPRESSED_PHQ, DEPRESSED_SDS = 10, 53  # the scores from which the label is 1
MAX_PHQ = 24  # of eight questions, 0 to 3 each
MAX_SDS = 100  # a standard score: 1.25 times the raw one, of twenty questions, 1 to 4 each
NOT_GIVEN = r"(?i)(nan|#?n/?a|none|null|<na>|missing|unknown|[-?.])?"  # a cell of a score
HEADER_ONLY = 1000  # bytes; a WAV no larger holds no answer


def find(files: Files, pattern: str, findings: Findings) -> Files:
    """Files whose path ends like `pattern`, by what its first group matched.

    Of files that are the same byte for byte the first is taken.
    """
    found = {}
    for path in files.values():
        if match := re.search(pattern + "$", path.as_posix()):
            first = found.setdefault(match[1], path)
            if first == path:
                continue
            if not filecmp.cmp(first, path, shallow=False):
                raise InputError(f"{match[1]} found twice, and not alike: {first} and {path}")
            findings.unused[path] = "a copy of another"
    return found


def count_names(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}: {join_names(names)}"


def read_avec_file(path: Path) -> pd.DataFrame:
    """One label file: participant_id, phq_score, phq_binary, gender, split; NaN where not given.

    The scores are numbers, and as given in `phq_score_cell` and `phq_binary_cell`.
    """
    table = read_table(path)
    names = {column: re.sub(r"^phq_?8?_", "phq_", column) for column in table.columns}
    names |= dict.fromkeys(COLUMNS["participant"], "participant_id")
    names |= dict.fromkeys(COLUMNS["gender"], "gender")
    kept = ("participant_id", "phq_score", "phq_binary", "gender")
    for name in kept:
        same = [column for column in table.columns if names[column] == name]
        if len(same) > 1:
            raise InputError(f"{path}: columns {' and '.join(same)} mean the same: keep one")
        if not same and name == "participant_id":
            raise InputError(f"{path}: expected a column participant_id, found {list(names)[:5]}")
    table = table.rename(columns=names)
    table = table.loc[:, table.columns.isin(kept)].reindex(columns=kept, fill_value="")
    # pandas writes ids as 300.0 where one is missing; folders are called 300_P
    for name in ("participant_id", "gender"):
        table[name] = table[name].str.replace(r"([.,]0+|_P)$", "", regex=True)
    for name in ("phq_score", "phq_binary"):
        table[f"{name}_cell"] = table[name].mask(table[name].str.fullmatch(NOT_GIVEN))
        table[name] = read_numbers(table[name])
    table["gender"] = table["gender"].str.lower().map(PHQ_GENDERS)
    split = SPLITS[re.search("train|dev|test", path.name)[0]]
    return table.assign(split=split, file=path.name)[table["participant_id"] != ""]


def find_disagreements(table: pd.DataFrame) -> pd.Series:
    """What label files say differently about a person, by participant_id."""
    facts = table.groupby("participant_id")[["phq_score", "phq_binary", "gender"]]
    differ = facts.nunique().gt(1).any(axis=1)
    rows = table[table["participant_id"].map(differ)]
    return rows.groupby("participant_id")["file"].agg(lambda files: " and ".join(pd.unique(files)))


def read_avec_labels(files: Files, findings: Findings) -> tuple[pd.DataFrame, dict[str, str]]:
    """AVEC's train, dev and test files -> people with a label, and why the others have none."""
    pattern = r"/(?:full_)?(?:train|dev|test)_split[^/]*\.csv$"
    paths = [path for path in files.values() if re.search(pattern, path.as_posix())]
    paths = list({hash_file(path): path for path in reversed(paths)}.values())[::-1]
    if not paths:
        raise InputError("no train_split*.csv or dev_split*.csv: pass their folder as --labels")
    table = pd.concat([read_avec_file(path) for path in paths], ignore_index=True)
    if alike := find_alike(table["participant_id"], "participants"):
        raise InputError(join_problems("the label files", alike))
    strange = table["phq_binary_cell"].notna() & ~table["phq_binary"].isin([0, 1])
    if strange.any():
        names = join_names(table.loc[strange, "participant_id"])
        raise InputError(f"labels other than 0 and 1: participants {names}")
    differ = find_disagreements(table)
    for who, where in differ.items():
        findings.problems.append(f"{who}: label files disagree ({where}): not used")
    known = table["phq_score_cell"].notna()
    impossible = known & ~table["phq_score"].between(0, MAX_PHQ)
    for _, row in table[impossible].drop_duplicates("participant_id").iterrows():
        found = f"PHQ-8 score {row['phq_score_cell']:.20}, expected 0 to {MAX_PHQ}"
        findings.problems.append(f"{row['participant_id']}: {found}: no label, not used")
    reasons = dict.fromkeys(differ.index, "with label files that disagree")
    reasons |= dict.fromkeys(table.loc[impossible, "participant_id"], "with an impossible score")
    by_score = (table["phq_score"] >= DEPRESSED_PHQ).astype(float)
    table["label"] = by_score.where(known, table["phq_binary"])
    # The people of test_split, which has no labels, stand in full_test_split too.
    table = table[~table["participant_id"].isin(reasons)].dropna(subset="label")
    table = table.drop_duplicates(["participant_id", "split"])
    return table.sort_values("participant_id", kind="stable"), reasons


def read_avec(
    files: Files, labels: Path | None, findings: Findings, transcript: str, read_turns: TurnReader
) -> list[Session]:
    """DAIC-WOZ and E-DAIC: a sound and a transcript per session, labels in AVEC's files."""
    sounds = find(files, rf"/(\d+)_AUDIO{SOUND}", findings)
    transcripts = find(files, rf"/(\d+)_{transcript}\.csv", findings)
    people, reasons = read_avec_labels(files, findings)
    labelled = set(people["participant_id"])
    for who in sounds.keys() - labelled:
        findings.unused[sounds[who]] = reasons.get(who, "without a label")
    for who in labelled & sounds.keys() - transcripts.keys():
        findings.unused[sounds[who]] = "without a transcript"
    if unlabelled := sorted(sounds.keys() - labelled - reasons.keys()):
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
            findings.unused[sounds[who]] = "with a damaged transcript"
            continue
        if not turns:
            findings.unused[sounds[who]] = "without a turn of the participant"
        gender = row["gender"] if isinstance(row["gender"], str) else None
        sessions.append(Session(who, who, label, row["split"], gender, turns))
    return sessions


def read_sds(folder: Path) -> float:
    """A volunteer's standard score: new_label.txt holds it, label.txt the raw one.

    Raises:
        InputError: neither holds a score, or they contradict each other.
    """
    scores = {}
    for name, factor in (("new_label.txt", 1.0), ("label.txt", 1.25)):
        path = folder / name
        if path.is_file():
            text = read_text(path)[0].strip()
            number = pd.to_numeric(text, errors="coerce")
            if not 0 <= number * factor <= MAX_SDS:
                raise InputError(f"{name_sound(path)}: {text!r:.20} is no SDS score")
            scores[name] = float(number) * factor
    if max(scores.values()) - min(scores.values()) > 1:  # one of them may be rounded
        found = " and ".join(f"{name} {score:g}" for name, score in scores.items())
        raise InputError(f"{folder.name}: the label files disagree (standard score by {found})")
    return next(iter(scores.values()))


def read_eatd(files: Files, labels: Path | None, findings: Findings) -> list[Session]:
    """EATD-Corpus: a volunteer's three answers, as the authors cleaned them, make one session."""
    volunteers = find(files, r"/([tv]_\d+)/label\.txt", findings)
    volunteers |= find(files, r"/([tv]_\d+)/new_label\.txt", findings)
    folders = {path.parent: who for who, path in volunteers.items()}
    sessions, reasons = [], {}
    for folder, who in folders.items():
        try:
            score = read_sds(folder)
        except InputError as error:
            findings.problems.append(f"{error}: not used")
            reasons[folder] = "without a valid label"
            continue
        answers = [folder / f"{name}_out.wav" for name in ("positive", "neutral", "negative")]
        turns = [(uncleaned_if_empty(answer, findings), 0.0, None) for answer in answers]
        split = "train" if who.startswith("t") else "val"
        sessions.append(Session(who, who, int(score >= DEPRESSED_SDS), split, None, turns))
    answer = re.compile(r"/[tv]_\d+/(?:positive|neutral|negative)(_out)?\.wav$")
    for path in files.values():
        if match := answer.search(path.as_posix()):
            known = "empty after cleaning" if match[1] else "before cleaning"
            reason = known if path.parent in folders else "without a label"
            findings.unused.setdefault(path, reasons.get(path.parent, reason))
    return sessions


def uncleaned_if_empty(cleaned: Path, findings: Findings) -> Path:
    """The cleaned recording, or the original where cleaning left nothing."""
    if cleaned.exists() and cleaned.stat().st_size > HEADER_ONLY:
        return cleaned
    original = cleaned.with_name(cleaned.name.replace("_out", ""))
    correction = f"empty or not there; {original.name} is used"
    findings.corrections.append(f"{name_sound(cleaned)}: {correction}")
    return original


SPEAKER = r"\d+_[CP][FM]\w+"  # 01_CF56_1: number, condition, gender, age, education


def name_person(speaker: str) -> str:
    """A person is 01_C, not 01."""
    return re.match(r"\d+_[CP]", speaker)[0]


def read_fold_list(path: Path) -> dict[tuple[str, str], set[str]]:
    """Androids' folds by speaker and task ("" where the list does not name it).

    Five columns of file names in quotes for the readings, and some further five for the
    interviews; the first row names the task above its first column, the second the folds.
    """
    text = read_text(path)[0]
    separator = max(",;\t", key=text.count)
    rows = [
        [cell.strip(" '\"") for cell in row]
        for row in csv.reader(io.StringIO(text), delimiter=separator)
    ]
    speaker = re.compile(rf"({SPEAKER}?)(?:\.wav)?", re.IGNORECASE)
    folds, task, number = defaultdict(set), "", 0
    for column in range(max(map(len, rows), default=0)):
        cells = [row[column] for row in rows if column < len(row)]
        names = [match[1] for cell in cells if (match := speaker.fullmatch(cell))]
        heading = " ".join(cell for cell in cells if not speaker.fullmatch(cell)).lower()
        if found := re.search("read|interview", heading):
            name = "reading" if found[0] == "read" else "interview"
            task, number = name, number if name == task else 0
        if names:
            number += 1
            given = re.search(r"(?:^|fold\W*)(\d+)$", heading)
            for name in names:
                folds[name, task].add(given[1] if given else str(number))
    return folds


def find_folds(files: Files, sessions: list[Session], findings: Findings) -> dict[str, str]:
    """The fold of each person by the corpus's list; {} if it does not put each into exactly one."""
    lists = find(files, r"/(fold-list)s?\.csv", findings)
    if not lists:
        note = "no fold-lists.csv: training makes its own folds, not the corpus's published ones"
        findings.notes.append(note)
        return {}
    folds, given = defaultdict(set), read_fold_list(lists["fold-list"])
    for session in sessions:
        speaker, task = session.name.split()
        own = given.get((speaker, task)) or given.get((speaker, ""))
        folds[session.participant] |= own or set()
    several = [f"{who} ({' and '.join(sorted(f))})" for who, f in folds.items() if len(f) > 1]
    none = [who for who, found in folds.items() if not found]
    name = lists["fold-list"].name
    if several:
        hint = "make one task's dataset: its folder as SOURCE and the list as --labels"
        names = count_names("people are in more than one of its folds", several)
        findings.problems.append(f"{name}: {names}: no column fold; {hint}")
    if none:
        names = count_names("people are in none of its folds", none)
        findings.notes.append(f"{name}: {names}: no column fold")
    return {} if several or none else {who: found.pop() for who, found in folds.items()}


def read_androids(files: Files, labels: Path | None, findings: Findings) -> list[Session]:
    """Androids Corpus: reading and interview of a person are two sessions.

    The recordings stand in Reading-Task/audio/{HC,PT} or, by its description, Reading-Task/{HC,PT}.
    """
    reading = find(files, rf"/Reading-Task/(?:[^/]+/)*({SPEAKER})\.wav", findings)
    turns = {(who, "reading"): [path] for who, path in reading.items()}
    # The interview as the authors cut it; interview_timedata.csv holds the same turns.
    cuts = find(files, rf"/Interview-Task/audio_clip/({SPEAKER}/\w+)\.wav", findings)
    for name in sorted(cuts, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]):
        turns.setdefault((name.split("/")[0], "interview"), []).append(cuts[name])
    whole = rf"/Interview-Task/(?!audio_clip/)(?:[^/]+/)*({SPEAKER})\.wav"
    interviews = find(files, whole, findings)
    uncut = [who for who in interviews if (who, "interview") not in turns]
    if uncut:
        findings.problems.append(count_names("interviews are not in audio_clip", uncut))
    for who, path in interviews.items():
        reason = (
            "without its turns in audio_clip" if who in uncut else "with the interviewer's voice"
        )
        findings.unused[path] = reason
    sessions = []
    for (who, task), paths in sorted(turns.items()):
        condition, gender = re.match(r"\d+_([CP])([FM])", who).groups()
        label, gender = int(condition == "P"), GENDERS[gender.lower()]
        parts = [(path, 0.0, None) for path in paths]
        sessions.append(Session(f"{who} {task}", name_person(who), label, None, gender, parts))
    folds = find_folds(files, sessions, findings)
    for session in sessions:
        session.fold = folds.get(session.participant)
    return sessions


def read_folder(files: Files, labels: Path | None, findings: Findings) -> list[Session]:
    """Any recordings, named by --labels: file,label[,participant][,gender][,split][,fold]."""
    if labels is None or not labels.is_file():
        raise InputError("a folder of recordings needs --labels, a CSV with columns file and label")
    table = read_folder_labels(labels, files, findings)
    compare_files(table, files, labels, findings)
    rows = table[table["path"].notna()].astype(object)
    sessions = []
    for row in rows.where(rows.notna(), None).to_dict("records"):
        path = row["path"]
        facts = row["participant"], int(row["label"]), row.get("split"), row.get("gender")
        turns = [(path, 0.0, None)]
        sessions.append(Session(name_sound(path), *facts, turns, row.get("fold")))
    return sessions


def name_from(source: Path, file: str) -> str:
    """How list_files names a file that labels name by its whole path, or from `./`."""
    for folder in Path(file).parents if os.path.isabs(file) else ():
        if os.path.isdir(folder) and os.path.samefile(folder, source):
            return Path(file).relative_to(folder).as_posix()
    return posixpath.normpath(file)


def read_folder_labels(labels: Path, files: Files, findings: Findings) -> pd.DataFrame:
    """A row per recording, with a column path: NaN where the recording is not there."""
    table, notes, problems = read_rows(labels, "file")
    source = next((path.parents[name.count("/")] for name, path in files.items()), Path())
    table["file"] = [name_from(source, cell.replace("\\", "/")) for cell in table["file"]]
    found, _ = match_names(table["file"], files)
    table["path"] = table["file"].map(found).map(files)
    checks = [("file", table["path"].notna() & table["path"].duplicated(), "repeats")]
    if "participant" in table:
        unusable = table["participant"].str.contains(r"^\.|[/\\]")
        checks.append(("participant", unusable, "cannot begin a file name"))
    if problems := problems + list_problems(table, checks):
        raise InputError(join_problems(str(labels), problems))
    findings.notes += notes
    if "participant" not in table:
        table["participant"] = name_people(table["path"].dropna(), labels)
        findings.notes += note_namesakes(table["participant"].dropna(), labels)
    findings.notes += note_both_labels(table, labels)
    return table


def name_people(paths: pd.Series, labels: Path) -> pd.Series:
    """Takes each file's stem for a person; stops where that leaves open who is who."""
    stems = paths.map(lambda path: compose(path.stem))
    if lost := list(stems[stems.str.contains(LOST)]):  # labels that say so could not be read
        raise InputError(f"{labels}: {join_names(lost, 3)} is no person's name: rename the file")
    same = stems.map(fold_spelling).duplicated(keep=False)
    if same.any():
        names = join_names(map(name_sound, paths[same]), 3)
        raise InputError(
            f"{labels}: who is who? Without a column participant a file's name is its person, but "
            f"{names} are named alike: add a column participant"
        )
    check_people(stems, labels)
    return stems


def compare_files(table: pd.DataFrame, files: Files, labels: Path, findings: Findings) -> None:
    """Reports rows without a recording, and recordings without a row."""
    _, missing = match_names(table["file"], files)
    if missing:
        names = count_names(f"of {len(table)} files are not there", missing)
        if len(missing) == len(table):
            raise InputError(f"{labels}: {names}; what is there: {join_names(files, 3)}")
        findings.problems.append(f"{labels.name}: {names}")
    sounds = [name for name in files if re.search(SOUND + "$", name.lower())]
    labelled = set(table["path"])
    if unlabelled := [name for name in sounds if files[name] not in labelled]:
        findings.notes.append(count_names("recordings without a label", unlabelled))
        findings.unused |= dict.fromkeys((files[name] for name in unlabelled), "without a label")


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
    dangling = []
    files = list_files(source.resolve(), dangling)
    paths = [*files.values(), *dangling]
    findings.sounds += [path for path in paths if re.search(SOUND + "$", path.name.lower())]
    findings.unused |= dict.fromkeys(dangling, "a link to nothing")
    layout, reason = (layout, "--layout") if layout else recognise(files, labels)
    name, _, read = LAYOUTS[layout]
    print_lines(f"{source}: {name} ({reason})")
    if labels and layout != "folder":
        beside = labels.resolve().glob("*.csv") if labels.is_dir() else [labels.resolve()]
        files |= {str(path): path for path in beside if path not in files.values()}
    sessions = read(files, labels, findings)
    splits = Counter(who for who, _ in {(s.participant, s.split) for s in sessions})
    if split_twice := sorted(who for who, n in splits.items() if n > 1):
        raise InputError(count_names("participants are in more than one split", split_twice))
    return source.resolve().name if layout == "folder" else name, sessions
