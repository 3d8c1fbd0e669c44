"""Clips, labels, participants and splits: what is on disk, checked. numpy and pandas only.

Shapes: M mel bins, T frames, N clips.
"""

import csv
import hashlib
import io
import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

from speech.cli import InputError, join_names, join_problems, open_file, read_file, show_controls
from speech.decode import NO_CLIP, name_kind

import numpy as np
import pandas as pd
from tqdm import tqdm

MAX_CLIP_BYTES = 64 * 2**20  # half an hour of (128, T) float64 frames at 16 kHz, hop 512
MAX_HEADER_BYTES = 1024  # numpy writes 118; a longer one is refused before it is parsed
TEST_FRACTION, VAL_FRACTION = 0.2, 0.1  # of all clips; the notebooks held out 0.2 for the test
KINDS = NO_CLIP | {
    b"PK\x03\x04": "a ZIP archive, as np.savez writes: save one array with np.save",
    b"version https://git-lfs": "a Git LFS pointer: run git lfs pull",
}


# --- clips --------------------------------------------------------------------------------------


def min_max(array: np.ndarray) -> np.ndarray:
    """Scales to [0, 1], as in the notebooks: dB and linear copies of a clip become the same."""
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise InputError(f"constant (every value is {low:g}): a silent or an empty recording?")
    if high - low > float(np.finfo(np.float32).max):
        raise InputError(f"values from {low:g} to {high:g}: not a spectrogram")
    return (array - low) / (high - low)


def read_header(file: BinaryIO) -> tuple[tuple[int, int], bool, np.dtype]:
    """Shape, Fortran's order or C's, and type of an open .npy file, all checked."""
    version = np.lib.format.read_magic(file)
    length = file.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > MAX_HEADER_BYTES:
        raise InputError("not a spectrogram: its header is too long")
    file.seek(-len(length), os.SEEK_CUR)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran_order, dtype = read(file, max_header_size=MAX_HEADER_BYTES)
    if len(shape) != 2 or any(type(n) is not int or n < 1 for n in shape):
        hint = ": save array.squeeze()" if sum(n != 1 for n in shape) == 2 else ""
        raise InputError(f"expected 2 dimensions (mel bins, frames), found shape {shape}{hint}")
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise InputError(f"expected real numbers, found {dtype}")
    if shape[0] * shape[1] * dtype.itemsize > MAX_CLIP_BYTES:
        raise InputError(f"shape {shape} is over the limit of {MAX_CLIP_BYTES // 2**20} MiB")
    return shape, fortran_order, dtype


def read_array(file: BinaryIO) -> np.ndarray:
    """The array of an open .npy file; memory is taken only after its header has been checked."""
    shape, fortran_order, dtype = read_header(file)
    size = shape[0] * shape[1] * dtype.itemsize
    data = file.read(size + 1)
    if len(data) != size:
        found = "more" if len(data) > size else len(data)
        raise InputError(f"expected {size} bytes of data, found {found}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


@contextmanager
def open_clip(source: str | Path | bytes) -> Iterator[BinaryIO]:
    """Opens a .npy file, or its bytes; whatever is wrong in reading it is an InputError."""
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open_file(source) as file:
            yield file
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    except Exception as error:  # numpy's header parser raises a dozen kinds on hostile input
        kind = name_kind(source, KINDS)
        found = f" ({kind})" if kind else ", or a damaged one"
        raise InputError(f"not a .npy file{found}") from error


def read_shape(source: str | Path | bytes) -> tuple[int, int]:
    """The shape (M, T) of a .npy clip, by its header alone; InputError as of read_spectrogram."""
    with open_clip(source) as file:
        return read_header(file)[0]


def read_spectrogram(source: str | Path | bytes) -> np.ndarray:
    """Reads one .npy clip from a path or from its bytes, without trusting either.

    Returns:
        float32 array (M, T) in [0, 1].

    Raises:
        InputError: not a 2-D .npy of finite real numbers, constant, or larger than the limit.
    """
    with open_clip(source) as file:
        array = read_array(file)
    with np.errstate(over="ignore", invalid="ignore"):
        clip = array.astype(np.float32, order="C")
    if not np.isfinite(clip).all():
        beyond = np.isfinite(array).all()
        raise InputError(f"holds {'values beyond float32' if beyond else 'NaN or infinite values'}")
    return min_max(clip)


def write_clip(path: Path, clip: np.ndarray) -> None:
    """All of a clip or nothing; not fsynced, which took as long as the clip's transform."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    buffer = io.BytesIO()  # np.save to a file does not report a full disk
    np.save(buffer, clip)
    try:
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        reason = f"cannot be written ({error.strerror})"
        raise InputError(f"{path}: {reason}; finished clips stay: run again to go on") from error


# --- tables -------------------------------------------------------------------------------------

# A spreadsheet would compute what begins so, also in full width or behind a tab or a line's end.
FORMULA = tuple("=+-@\t\r\n＝＋－＠")
SAVE_AS = "save it as CSV UTF-8 (in Excel: File, Save As, 'CSV UTF-8')"
MAX_COLUMNS = 10_000  # pandas takes 50 us for each
SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # how .xlsx and .ods, and .xls, begin


def quote_formulas(cells: Iterable[object]) -> list[object]:
    """Cells to be written for a spreadsheet: a quote makes text of what it would compute."""
    return [f"'{cell}" if str(cell).startswith(FORMULA) else cell for cell in cells]


def clean_cell(cell: str) -> str:
    """Without spaces around, and what makes text of it in a spreadsheet: `="007"`, `'007`."""
    cell = cell.strip()
    if cell.startswith(("=", "'")):
        cell = re.sub(r"""\A="(.*)"\Z|\A'(?=[=＝+＋＠@－-]|\d[\d.,:/-]*\Z)""", r"\1", cell).strip()
    return cell


def read_text(path: str | Path, errors: str = "strict") -> tuple[str, str]:
    """A table's text, and SHA-256; what is not UTF-8 is refused: wrong letters would merge names.

    Args:
        errors: "replace" takes it, with wrong letters.
    """
    try:
        data = read_file(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); pass --labels") from error
    if data.startswith(SPREADSHEETS):
        raise InputError(f"{path}: a spreadsheet (.xlsx or the like), not a CSV file: {SAVE_AS}")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4096]:
        raise InputError(f"{path}: UTF-16 text or no text, expected UTF-8: {SAVE_AS}")
    try:
        return data.decode("utf-8-sig", errors), hashlib.sha256(data).hexdigest()
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: not UTF-8 text (row {row}): {SAVE_AS}") from error


def read_table(path: str | Path, *columns: str, ragged: bool = False) -> pd.DataFrame:
    """Reads a CSV file: commas, semicolons or tabs; UTF-8 with or without a byte-order mark.

    Args:
        columns: names that it must have.
        ragged: fill or cut rows whose length differs from the header's, and take wrong letters,
            as of transcripts, whose text is not needed, instead of refusing them.

    Returns:
        Stripped text in every cell, column names like `participant_id`; rows without any text are
        left out, and the index + 2 is the row's number in a spreadsheet. attrs["sha256"] is the
        file's.

    Raises:
        InputError: one line that names the file, what was found and how to save it.
    """
    text, sha256 = read_text(path, "replace" if ragged else "strict")
    text = re.sub(r"\Asep=.\r?\n", "", text)  # Excel's own first line
    separator = max(",;\t", key=text.partition("\n")[0].count)
    # DAIC-WOZ's transcripts, with tabs, have stray quotation marks.
    quoting = csv.QUOTE_NONE if ragged and separator == "\t" else csv.QUOTE_MINIMAL
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, quoting=quoting)
    try:
        header, *rows = [[clean_cell(cell) for cell in line] for line in lines] or [[]]
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error})") from error
    if len(header) > MAX_COLUMNS:
        raise InputError(f"{path}: {len(header)} columns, expected at most {MAX_COLUMNS}")
    header = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name) for name in header]  # ParticipantID
    header = [re.sub(r"[#():]", "", name.lower()).strip() for name in header]
    header = [re.sub(r"[\s.-]+", "_", name).rstrip("_") for name in header]
    if not set(columns) <= set(header):
        found = join_names(map(repr, header))[:200]
        hint = " (here id is a file's name)" if "id" in columns and "file" in header else ""
        raise InputError(f"{path}: expected columns {' and '.join(columns)}, found {found}{hint}")
    numbers = [number for number, row in enumerate(rows) if any(row)]
    rows = [rows[number] for number in numbers]
    if ragged:
        rows = [(row + [""] * len(header))[: len(header)] for row in rows]
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != len(header):
            found = f"row {number + 2} has {len(row)} cells, the header {len(header)}"
            reason = f"{found}: a name with a separator in it needs quotation marks; {SAVE_AS}"
            raise InputError(f"{path}: {reason}")
    table = pd.DataFrame(rows, index=numbers, columns=header, dtype=str)
    table.attrs["sha256"] = sha256
    return table.loc[:, [bool(name) or table.iloc[:, i].any() for i, name in enumerate(header)]]


# --- labels -------------------------------------------------------------------------------------

LABELS = {"0": 0, "0.0": 0, "false": 0, "no": 0, "not depressed": 0}
LABELS |= {"1": 1, "1.0": 1, "true": 1, "yes": 1, "depressed": 1}
SPLITS = {"train": "train", "val": "val", "dev": "val", "validation": "val", "test": "test"}
SPLITS |= {"training": "train", "valid": "val", "development": "val", "testing": "test"}
GENDERS = {"m": "male", "male": "male", "man": "male"}
GENDERS |= {"f": "female", "female": "female", "w": "female", "woman": "female"}
PEOPLE = ("participant", "speaker", "subject", "patient", "person", "actor", "proband")
ENDS = ("", "_id", "id", "_no", "_number")
# What may name people; not what says something of them, such as speaker_emotion.
OF_PEOPLE = re.compile(rf"(?:^|_)(?:{'|'.join(PEOPLE)})_?(?:id|no|nr|number|name|code|key|\d+)?$")
COLUMNS = {  # what a column may be called
    "label": ("label",),
    "participant": tuple(
        who + end
        for who in PEOPLE
        for end in ENDS
        if (who, end) != ("patient", "")  # or yes or no
    ),
    "split": ("split",),
    "fold": ("fold",),
    "gender": ("gender", "sex"),
}


MAX_NAME, MAX_PATH = 255, 4096  # letters: Linux's bounds
INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u2060\ufeff]")
compose = partial(unicodedata.normalize, "NFC")  # spreadsheets compose é, macOS decomposes it
# What is left of other scripts, of long numbers, of formulas and of cells that were missing.
LOST = r"\?\?|\ufffd|\A(?i:\?|nan|none|null|n/?a|<na>|\d+(?:[.,]\d+)?e\+\d+)\Z"
LOST += r"|\A#(?i:#+|n/?[adv]|.*[!?])\Z"
WAS_LOST = "was lost before it was saved: format the column as text, save it as CSV UTF-8; if it "
WAS_LOST += "is a name, spell it otherwise"


@cache
def divide(letter: str) -> str:
    """A dash for punctuation and spaces; not for emoji and signs such as A+, which are names."""
    is_accent = unicodedata.category(letter) == "Sk" and letter < "\U0001f000"  # not a skin's tone
    is_punctuation = unicodedata.category(letter).startswith("P") or letter == "−"
    return "-" if letter.isspace() or is_accent or is_punctuation else letter


def fold_spelling(name: str) -> str:
    """What a name has in common with its other spellings: `S01`, `s-1 ` and `S1.0` are one.

    Between two digits or letters it matters that something divides them, not what: 1-11, 1_11;
    not 11-1.
    """
    name = INVISIBLE.sub("", name.replace("´", "'"))  # NFKC makes a space and an accent of it
    name = unicodedata.normalize("NFKC", name).casefold()
    name = re.sub(r"(?<=\D)\s+(?=\D)", "", name)
    divided = "".join(map(divide, re.sub(r"[.,]0+$", "", name)))
    divided = re.sub("-+", "-", divided)
    folded = re.sub(r"\A-|-\Z|(?<=\D)-(?=\d)|(?<=\d)-(?=\D)", "", divided)
    return re.sub(r"(?<!\d)0+(?=\d)", "", folded) or name


def find_alike(names: Iterable[str], kind: str) -> list[str]:
    """A problem for every group of names that differ only in how they are spelt."""
    groups = {}
    for name in dict.fromkeys(names):
        groups.setdefault(fold_spelling(name), []).append(name)
    how = "differ only in case, leading zeros, '.0', punctuation or spaces: spell them alike"
    return [
        f"{kind} {' and '.join(map(repr, sorted(group)))} {how}"
        for group in groups.values()
        if len(group) > 1
    ]


def check_facts(table: pd.DataFrame) -> list[str]:
    """A problem for participants that are spelt in several ways, or of two genders."""
    problems = find_alike(table["participant"], "participants")
    if "gender" in table:
        known = table[table["gender"].isin(GENDERS.values())]
        genders = known.groupby("participant")["gender"].nunique()
        both = genders.index[genders > 1]
        problems += [f"participant {name!r} is both female and male" for name in both]
    return problems


def rename_columns(table: pd.DataFrame, key: str, path: str | Path) -> list[str]:
    """Gives the columns of `table` the names of COLUMNS -> notes on those that nothing uses."""
    names = {key: key}
    for name, spellings in COLUMNS.items():
        found = [column for column in table.columns if column in spellings]
        # Of actor and the like beside a participant only the latter says who is who.
        found = [one for one in found if one.startswith(PEOPLE[:3])] or found
        if len(found) > 1:
            raise InputError(f"{path}: columns {' and '.join(found)} mean the same: keep one")
        names |= dict.fromkeys(found, name)
    unused = [column for column in table.columns if column not in names]
    who = [column for column in unused if OF_PEOPLE.search(column)]
    told = key == "id" and any("_clip_" in cell for cell in table["id"].to_numpy().ravel())
    if who and not told and "participant" not in names.values():
        hint = "if it names each clip's person, call it participant, or remove it"
        raise InputError(f"{path}: who is who? Column {who[0]} is not used: {hint}")
    table.drop(columns=unused, inplace=True)
    table.columns = [names[column] for column in table.columns]
    if table.columns.duplicated().any():
        raise InputError(f"{path}: column {key} is there twice: keep one")
    if not unused:
        return []
    named = join_names(name or "(without a name)" for name in unused)
    return [f"{path}: columns that are not used: {named}"]


def normalise_rows(table: pd.DataFrame, path: str | Path) -> list[str]:
    """Gives the cells of `table` the values of LABELS, SPLITS and GENDERS -> problems by row."""
    words = table["label"].str.lower().str.replace(r"[\s_-]+", " ", regex=True)
    checks = [("label", ~words.isin(LABELS), "is neither 0 nor 1")]
    table["label"] = words.map(LABELS).where(words.isin(LABELS), table["label"])
    if "split" in table:
        words = table["split"].str.lower()
        checks.append(("split", ~words.isin(SPLITS), "is not train, val or test"))
        table["split"] = words.map(SPLITS).where(words.isin(SPLITS), table["split"])
    if "gender" in table:
        words = table["gender"].str.lower()
        table["gender"] = words.map(GENDERS).fillna(words).replace("", np.nan)
    for name in [name for name in ("participant", "fold") if name in table]:
        table[name] = [compose(cell) for cell in table[name]]
        checks.append((name, table[name] == "", "is empty: name it in every row"))
        checks.append((name, table[name].str.contains(LOST), WAS_LOST))
    return list_problems(table, checks)


def list_problems(table: pd.DataFrame, checks: Iterable[tuple]) -> list[str]:
    """Problems of checks (column, mask of bad rows, what is wrong), rows as a spreadsheet counts.

    The header is row 1.
    """
    return [
        f"row {row + 2}: {column} {value!r:.100} {wrong}"
        for column, bad, wrong in checks
        for row, value in table.loc[bad, column].items()
    ]


def read_rows(path: str | Path, key: str) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Reads a table of labels for `key` (id or file), every row checked and normalised.

    Returns:
        The rows (key, label 0 or 1, and participant, split, fold and gender where present), notes
        for the user, and problems: the caller adds its own and refuses them together.
    """
    table = read_table(path, key, "label")
    if table.empty:
        raise InputError(f"{path}: expected a header and a row per {key}, found no row")
    notes = rename_columns(table, key, path)
    most = {name: MAX_PATH if name == "file" else MAX_NAME for name in table}
    long = [(name, table[name].str.len() > most[name], "is too long") for name in table]
    if problems := list_problems(table, long):  # some checks take quadratic time
        raise InputError(join_problems(str(path), problems))
    problems = normalise_rows(table, path)
    if "participant" in table:
        problems += check_facts(table)
    if "fold" in table:
        problems += find_alike(table["fold"], "folds")
    return table, notes, problems


def find_stems(name: str) -> set[str]:
    """What could be the participant's part of an id: before its last part, its first number, ..."""
    first = re.match(r"[^\W_]*", name)[0]
    end = re.match(r"[^\W_]*[\W_]+", name[::-1])  # a search for its start would be quadratic
    last = name[: -end.end()] if end else name
    through_number = re.match(r"\D*\d*", name)[0]
    return {first, last, through_number} - {name, ""}


def find_namesakes(people: Iterable[str]) -> list[str]:
    """Names that begin with the same word, as anna_morning and anna_evening do; [] if none do.

    Nor where the words are groups' (HC_01, HC_02, PT_01, PT_02): few, each of several numbers.
    """
    groups, numbered = {}, True
    for name in people:
        if word := re.match(r"([^\W\d_]{2,})(?:[\W_]|\d*$)", name):  # not ab of ab12cd
            groups.setdefault(word[1].casefold(), []).append(name)
            numbered &= re.fullmatch(r"[\W_]*\d+", name[word.end(1) :]) is not None
    sizes = [len(names) for names in groups.values()]
    if len(groups) < 2 or (numbered and min(sizes) >= len(groups)):
        return []
    return next((names for names in groups.values() if len(names) > 1), [])


def check_people(participants: pd.Series, path: str | Path, advice: str = "") -> None:
    """Stops where names that are taken for people of their own begin alike.

    Corpora name files `300_3`, `S01-03` or `03-01-06-01-02-01-12`: a split "by participant" would
    then put one voice on both sides, and the score would measure recognising it. Where people have
    several clips, names may begin with the same word (sub_01, sub_02), not with the same number.
    """
    several = participants.duplicated().any()
    participants = pd.Series(participants.unique(), dtype=object)

    def find_shared(name: str) -> set[str]:
        return {stem for stem in find_stems(name) if not several or re.search(r"\d", stem)}

    shared = {name: find_shared(name) for name in participants}
    stems = Counter(stem for found in shared.values() for stem in found)
    if alike := [name for name, found in shared.items() if any(stems[s] > 1 for s in found)]:
        raise InputError(
            f"{path}: who is who? Without a column participant each of {join_names(alike, 3)} is a "
            f"person of its own, but they begin alike: add a column participant{advice}"
        )


def note_namesakes(people: Iterable[str], path: str | Path) -> list[str]:
    """A note where names that begin with the same word are taken for two people."""
    alike = " and ".join(find_namesakes(people)[:2])
    taken = f"{alike} are taken for two people; such a column says who is who"
    return [f"{path}: no column participant: {taken}"] if alike else []


def note_both_labels(table: pd.DataFrame, path: str | Path) -> list[str]:
    """A note where people have clips of both labels: actors do, elsewhere it may be a slip."""
    labels = table.groupby("participant")["label"].nunique()
    both = list(labels.index[labels > 1])
    return [f"{path}: with both labels: {join_names(both, 3)}"] if both else []


def clean_id(cell: str) -> str:
    """An id in one Unicode form, without the .npy of its file."""
    return compose(cell[:-4] if cell[-4:].lower() == ".npy" else cell)


def read_labels(path: str | Path, ask_who: bool = True) -> tuple[pd.DataFrame, list[str]]:
    """Reads dataset.csv.

    Args:
        ask_who: stop where ids without a participant column leave open who is who.

    Returns:
        One row per clip: id (text: 007 stays 007), label (0 or 1), participant (text; without
        the column, the part of the id before `_clip_`), and split, fold and gender where present;
        and notes for the user.

    Raises:
        InputError: not such a file; all of its problems are in the one message.
    """
    frame, notes, problems = read_rows(path, "id")
    frame["id"] = [clean_id(cell) for cell in frame["id"]]
    unusable = frame["id"].str.contains(r"[/\\\0]", regex=True) | frame["id"].isin(["", ".", ".."])
    repeated = frame["id"].duplicated() & ~unusable
    checks = [("id", unusable, "is not a plain file name"), ("id", repeated, "repeats")]
    problems = list_problems(frame, checks) + problems
    if "participant" not in frame:
        frame["participant"] = frame["id"].str.split("_clip_", regex=False).str[0]
        problems += list_problems(frame, [("id", frame["id"].str.contains(LOST), WAS_LOST)])
        problems += check_facts(frame)
        if not problems and ask_who:
            without = frame["participant"][~frame["id"].str.contains("_clip_")]
            for names in (without, frame["participant"]):
                check_people(names, path, ", or (in training) pass --split clip to go on without")
        if frame["participant"].is_unique:
            notes.append(f"{path}: no column participant: each clip is taken for another person's")
        else:
            notes += note_namesakes(frame["participant"].unique(), path)
    if problems:
        raise InputError(join_problems(str(path), problems))
    notes += note_both_labels(frame, path)
    columns = ["id", "label", "participant", "split", "fold", "gender"]
    frame = frame[[name for name in columns if name in frame]].reset_index(drop=True)
    return frame.astype({"label": int}), notes


# --- checking every clip ------------------------------------------------------------------------

LEAST_LOUD = 0.1  # of a clip's scaled values 10% are above: .36 to .73 in dB (1,079 clips of four
# corpora), up to .09 of amplitude, .008 of power
COHERENT = 0.4  # how alike the clips' mean levels are (cosine) along mel bins: .74 to .92 in four
# corpora; along frames at most .27


@dataclass(frozen=True)
class Clips:
    """Clips that have been checked."""

    frame: pd.DataFrame  # a row per clip, as read_labels returns, and its path
    shape: tuple[int, int]  # (M, T), of all
    content: str  # hash of all clips, labels, participants, splits and folds
    notes: list[str]  # for the user


def looks_linear(clip: np.ndarray) -> bool:
    """Whether a scaled clip is power or amplitude, not dB: almost all of it is next to 0."""
    return float(np.quantile(clip, 0.9)) < LEAST_LOUD


def find_paths(ids: Iterable[str], folder: Path) -> tuple[list[str | None], list[str]]:
    """The .npy file of each id, in whichever Unicode form its name is, and what is missing."""
    files, twice = {}, set()
    for name in sorted(os.listdir(folder)):
        if files.setdefault(compose(name), name) != name:
            twice.add(compose(name))
    lower = {name.lower(): name for name in files}
    paths, problems = [], []
    for name in (f"{one}.npy" for one in ids):
        paths.append(os.path.join(folder, files[name]) if name in files else None)
        if name in twice:
            problems.append(f"{name} is there in two Unicode forms: remove one")
        if name not in files:
            other = lower.get(name.lower())
            hint = f"; {other} differs in case: rename it" if other else ""
            problems.append(f"{name} is not there{hint}")
    return paths, problems


def find_copies(frame: pd.DataFrame, hashes: dict[str, str]) -> tuple[list[str], list[str]]:
    """Equal clips: problems where people or labels differ, else notes."""
    rows = frame.assign(hash=frame["id"].map(hashes)).dropna(subset="hash")
    problems, notes = [], []
    for _, copies in rows[rows["hash"].duplicated(keep=False)].groupby("hash", sort=False):
        names = " and ".join(map(show_controls, copies["id"]))
        if copies["participant"].nunique() > 1 or copies["label"].nunique() > 1:
            problems.append(f"{names} are the same clip, of different people or labels")
        else:
            notes.append(names)
    return problems, [f"the same clip more than once: {'; '.join(notes[:3])}"] if notes else []


def coherence(levels: np.ndarray, count: int) -> float:
    """Mean cosine between two clips' levels, from the sum of `count` unit vectors."""
    return float((levels @ levels - count) / max(count * (count - 1), 1))


class Survey:
    """What checking learns of the clips, without keeping them."""

    def __init__(self) -> None:
        self.shapes, self.hashes, self.linear = {}, {}, []
        self.levels = {}  # by shape: the sums over clips of their levels (M,) and (T,)

    def add(self, name: str, clip: np.ndarray) -> None:
        self.shapes[name] = clip.shape
        self.hashes[name] = hashlib.sha256(clip.tobytes()).hexdigest()
        if looks_linear(clip):
            self.linear.append(name)
        levels = [clip.mean(axis=1), clip.mean(axis=0)]
        levels = [level - level.mean() for level in levels]
        levels = [level / max(float(np.linalg.norm(level)), 1e-9) for level in levels]
        sums = self.levels.get(clip.shape, (0, 0))
        self.levels[clip.shape] = [a + b for a, b in zip(sums, levels, strict=True)]

    def shape(self) -> tuple[int, int]:
        return Counter(self.shapes.values()).most_common(1)[0][0]

    def problems(self) -> Iterator[str]:
        """What is wrong with the clips as a whole, and which of them differ from the others."""
        shape, count = self.shape(), len(self.shapes)
        for name, other in self.shapes.items():
            if other != shape:
                yield f"{name}.npy has shape {other}, most have {shape}"
        if len(self.linear) > count / 2:
            found = f"{len(self.linear)} of {count} clips are almost all next to 0 after scaling"
            yield f"{found}, as mel power is: save librosa.power_to_db(power)"
        bins, frames = (coherence(sums, count) for sums in self.levels[shape])
        if frames > max(COHERENT, bins):
            yield f"{shape} looks transposed, expected (mel bins, frames): save each clip's .T"


def check_clips(frame: pd.DataFrame, folder: str | Path) -> Clips:
    """Reads every clip once; reports all problems in one error."""
    paths, problems = find_paths(frame["id"], Path(folder))
    survey = Survey()
    rows = [(name, path) for name, path in zip(frame["id"], paths, strict=True) if path]
    for name, path in tqdm(rows, "checking clips", unit="clip", leave=False, delay=2, disable=None):
        try:
            survey.add(name, read_spectrogram(path))
        except InputError as error:
            problems.append(f"{name}.npy {error}")
    copies, notes = find_copies(frame, survey.hashes)
    problems += copies
    if survey.shapes:
        problems += survey.problems()
    if problems:
        raise InputError(join_problems(str(folder), problems))
    if survey.linear:
        notes.append(f"clips almost all next to 0 after scaling: {join_names(survey.linear, 3)}")
    facts = frame.drop(columns="gender", errors="ignore").assign(clip=survey.hashes.values())
    content = hashlib.sha256(facts.to_csv(index=False).encode()).hexdigest()
    return Clips(frame.assign(path=paths), survey.shape(), content, notes)


# --- splits -------------------------------------------------------------------------------------

SIDES = ("train", "val", "test")


def split_folds(frame: pd.DataFrame, folds: int | str, by: str, seed: int) -> list[tuple]:
    """Stratified folds as (rest, held) positions; by participant, nobody is in two of them.

    Args:
        folds: how many, or "given": those of the column fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if folds == "given":
        numbers = frame["fold"].to_numpy()
        return [
            (np.flatnonzero(numbers != n), np.flatnonzero(numbers == n))
            for n in sorted(set(numbers), key=lambda n: (len(n), n))
        ]
    splitter = StratifiedKFold if by == "clip" else StratifiedGroupKFold
    splitter = splitter(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # of a label with fewer clips than folds: the report shows it
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(frame["id"], frame["label"], frame["participant"]))


def hold_out(frame: pd.DataFrame, fraction: float, by: str, seed: int) -> tuple:
    """Holds out about `fraction` of all clips, by people or by clip: (rest, held) positions."""
    if by == "clip":
        from sklearn.model_selection import train_test_split

        return train_test_split(np.arange(len(frame)), test_size=fraction, random_state=seed)
    labels, wanted = frame["label"].to_numpy(), fraction * len(frame)
    most = min(frame["participant"].nunique(), np.bincount(labels).max())

    def misfit(fold):  # with few people a fold can come out one-sided: the best of them is taken
        rest, held = fold
        return len(set(labels[rest])) < 2, len(set(labels[held])) < 2, abs(len(held) - wanted)

    return min(split_folds(frame, min(round(1 / fraction), most), by, seed), key=misfit)


def split_clips(frame: pd.DataFrame, by: str, seed: int, test=None, validate=True) -> dict:
    """Positions of the training, validation and test clips.

    Args:
        by: "participant" (nobody is on two sides) or "clip" (the notebooks' protocol);
            an official split column wins over both.
        test: positions of the test clips, when a fold has already chosen them.
        validate: False leaves no clip for validation.

    Raises:
        InputError: too few people to have both labels in training.
    """
    everything, given = np.arange(len(frame)), test
    split = {name: np.flatnonzero(frame["split"] == name) for name in SIDES if "split" in frame}
    if split and not len(split["train"]):
        raise InputError("column split: expected rows of train, found none")
    val = split.get("val", everything[:0])
    if test is None:
        test = split.get("test", everything[:0])
        if split and not len(test):  # AVEC's test labels are rarely at hand
            test, val = val, test
    try:
        if not len(test):
            test = hold_out(frame, TEST_FRACTION, by, seed)[1]
        rest = np.setdiff1d(everything, np.union1d(test, val))
        if validate and not len(val):
            fraction = VAL_FRACTION * len(frame) / len(rest)
            val = rest[hold_out(frame.iloc[rest], fraction, by, seed)[1]]
            rest = np.setdiff1d(rest, val)
        if len(set(frame["label"].iloc[rest])) < 2:
            raise ValueError("one label only in training")
    except (ValueError, ZeroDivisionError) as error:  # scikit-learn's, of fewer people than folds
        n_people, *of_labels = (
            rows["participant"].nunique()
            for rows in (frame, frame[frame["label"] == 0], frame[frame["label"] == 1])
        )
        flags = ["--patience 0"] if validate else []
        flags += ["--folds people"] if given is None else []
        tries = f", or try {' or '.join(flags)}" if flags and min(of_labels) > 1 else ""
        raise InputError(
            f"{n_people} participants ({of_labels[1]} with label 1) are too few to keep people "
            f"apart with both labels in training: add people{tries}"
        ) from error
    return {"train": rest, "val": np.sort(val), "test": np.sort(test)}
