"""Clips, labels and splits: what is on disk, checked; users' mistakes. numpy and pandas only.

Shapes: M mel bins, T frames, N clips.
"""

import argparse
import io
import math
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

MAX_CLIP_BYTES = 64 * 2**20  # half an hour of (128, T) float64 frames at 16 kHz, hop 512
MAX_HEADER_BYTES = 1024  # numpy writes 118; a longer one is refused before it is parsed
MAX_PROBLEMS_NAMED = 10
TEST_FRACTION, VAL_FRACTION = 0.2, 0.1  # of all clips


# --- users' mistakes, and files ---------------------------------------------------------------


class InputError(ValueError):
    """A user's mistake, told in one line: the thing, what was found, what was expected."""


def run(main: Callable[[], int | None]) -> None:
    """Runs a script's `main`; a user's mistake or a failing disk is one line and exit status 2."""
    try:
        sys.exit(main())
    except (InputError, OSError) as error:
        # The error of a process that reads clips carries its traceback: its last line is ours.
        message = str(error).strip().splitlines()[-1].removeprefix("dataset.InputError: ")
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, as any other."""

    def error(self, message: str):
        raise InputError(f"{message} (--help lists what there is)")


def at_least(low: float, kind: type = int, below: float = math.inf) -> Callable:
    """An argparse type: a number that is not below `low`, but `below` the other."""
    wanted = "whole number" if kind is int else "number"
    wanted += f" of at least {low}" + f" and below {below}" * math.isfinite(below)

    def number(text: str):
        with suppress(ValueError):
            if low <= kind(text) < below:
                return kind(text)
        raise argparse.ArgumentTypeError(f"{text!r} is no {wanted}")

    return number


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed over it on success.

    A crash at any moment leaves the old file or the new one, never a part of either.

    Raises:
        InputError: the disk is full, the folder is missing or may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save tells a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be written ({reason}); nothing there changed") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def check_writable(path: str | Path) -> None:
    """Makes the folder of `path` and writes there, before hours are spent on what goes into it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of torchrun's may have done it
    except OSError as error:
        raise InputError(f"{path}: cannot be written there ({error.strerror})") from error


# --- clips --------------------------------------------------------------------------------------


def min_max(array: np.ndarray) -> np.ndarray:
    """Scales to [0, 1], as in the notebooks: dB and linear copies of a clip become the same."""
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise InputError(f"constant (every value is {low:g}): a silent or an empty recording?")
    if high - low > float(np.finfo(np.float32).max):
        raise InputError(f"values from {low:g} to {high:g} are no spectrogram")
    return (array - low) / (high - low)


def _read_npy(file) -> np.ndarray:
    """The array of an open .npy file; memory is taken only after its header has been checked."""
    version = np.lib.format.read_magic(file)
    length = file.read(2 if version == (1, 0) else 4)
    if int.from_bytes(length, "little") > MAX_HEADER_BYTES:
        raise InputError("not a spectrogram: its header is too long")
    file.seek(-len(length), os.SEEK_CUR)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, fortran_order, dtype = read_header(file, max_header_size=MAX_HEADER_BYTES)
    if len(shape) != 2 or any(type(n) is not int or n < 1 for n in shape):
        raise InputError(f"expected 2 dimensions (mel bins, frames), found shape {shape}")
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise InputError(f"expected real numbers, found {dtype}")
    size = shape[0] * shape[1] * dtype.itemsize
    if size > MAX_CLIP_BYTES:
        raise InputError(f"shape {shape} is over the limit of {MAX_CLIP_BYTES // 2**20} MiB")
    data = file.read(size + 1)
    if len(data) != size:
        found = "more" if len(data) > size else len(data)
        raise InputError(f"expected {size} bytes of data, found {found}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")


def read_spectrogram(source: str | Path | bytes) -> np.ndarray:
    """Reads one .npy clip from a path or from its bytes, without trusting either.

    Returns:
        float32 array (M, T) in [0, 1].

    Raises:
        InputError: not a 2-D .npy of finite real numbers, constant, or larger than the limit.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            array = _read_npy(file)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    except Exception as error:  # numpy's header parser raises a dozen kinds on hostile input
        raise InputError("not a .npy file, or a damaged one") from error
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, order="C")
    if not np.isfinite(array).all():
        raise InputError("holds NaN or infinite values")
    return min_max(array)


# --- dataset ------------------------------------------------------------------------------------

LABELS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
SPLITS = ("train", "val", "test")


def _problem_line(what: str, problems: list[str]) -> str:
    """One line for any number of problems: all counted, the first ten named."""
    named = "; ".join(problems[:MAX_PROBLEMS_NAMED])
    more = len(problems) - MAX_PROBLEMS_NAMED
    return f"{what}: {len(problems)} problem{'s' * (len(problems) > 1)}: {named}" + (
        f"; and {more} more" if more > 0 else ""
    )


def _read_csv(path: str | Path) -> pd.DataFrame:
    """Every cell as stripped text; commas or semicolons, with or without a byte-order mark."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        separator = ";" if ";" in header and "," not in header else ","
        with warnings.catch_warnings():  # of a row longer than the header
            warnings.simplefilter("error", pd.errors.ParserWarning)
            kinds = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
            frame = pd.read_csv(path, sep=separator, index_col=False, **kinds)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); pass --labels") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text; save it as CSV in UTF-8") from error
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{path}: not a CSV file: {error}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    return frame.apply(lambda column: column.str.strip())


def _label_problems(frame: pd.DataFrame) -> list[str]:
    """What is wrong with the rows, numbered as a spreadsheet shows them (the header is row 1)."""
    ids = frame["id"]
    unusable = ids.str.contains(r"[/\\\0]", regex=True) | ids.isin(["", ".", ".."])
    checks = [
        ("id", unusable, "is not a plain file name"),
        ("id", ids.duplicated() & ~unusable, "repeats"),
        ("label", ~frame["label"].str.lower().isin(LABELS), "is neither 0 nor 1"),
    ]
    if "split" in frame:
        checks.append(("split", ~frame["split"].isin(SPLITS), "is not train, val or test"))
    return [
        f"row {row + 2}: {column} {value!r:.100} {wrong}"
        for column, bad, wrong in checks
        for row, value in frame.loc[bad, column].items()
    ]


def read_labels(path: str | Path) -> pd.DataFrame:
    """Reads dataset.csv.

    Returns:
        One row per clip: id (text: 007 stays 007), label (0 or 1), participant (text; without
        the column, the part of the id before `_clip_`), and split and gender where present.

    Raises:
        InputError: not such a file; all of its problems are in the one message.
    """
    frame = _read_csv(path)
    usable = {"id", "label"} <= set(frame.columns) and frame.columns.is_unique
    if not usable or frame.empty:
        found = "no row" if usable else ", ".join(map(repr, frame.columns))[:200]
        raise InputError(f"{path}: expected columns id and label and a row per clip, found {found}")
    if problems := _label_problems(frame):
        raise InputError(_problem_line(str(path), problems))
    frame["label"] = frame["label"].str.lower().map(LABELS)
    by_id = frame["id"].str.split("_clip_").str[0]
    given = frame.get("participant", by_id)
    frame["participant"] = given.where(given != "", by_id)
    if "gender" in frame:
        frame["gender"] = frame["gender"].replace("", np.nan)
    return frame[[c for c in ("id", "label", "participant", "split", "gender") if c in frame]]


def check_clips(frame: pd.DataFrame, folder: str | Path) -> tuple[int, int]:
    """Reads every clip once and returns their common (M, T), or tells all problems in one error."""
    shapes, problems = {}, []
    for name in tqdm(
        frame["id"], "checking clips", unit="clip", leave=False, delay=2, disable=None
    ):
        try:
            shapes[name] = read_spectrogram(Path(folder, f"{name}.npy")).shape
        except InputError as error:
            problems.append(f"{name}.npy {error}")
    common = Counter(shapes.values()).most_common(1)
    problems += [
        f"{name}.npy has shape {shape}, most have {common[0][0]}"
        for name, shape in shapes.items()
        if shape != common[0][0]
    ]
    if problems:
        raise InputError(_problem_line(str(folder), problems))
    return common[0][0]


# --- splits -------------------------------------------------------------------------------------


def split_folds(frame: pd.DataFrame, folds: int, by: str, seed: int) -> list[tuple]:
    """Stratified folds as (rest, held) positions; by participant, nobody stands in two of them."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    splitter = StratifiedKFold if by == "clip" else StratifiedGroupKFold
    splitter = splitter(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # of a label with fewer clips than folds: the report shows it
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(frame["id"], frame["label"], frame["participant"]))


def _hold_out(frame: pd.DataFrame, fraction: float, by: str, seed: int) -> tuple:
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
        by: "participant" (nobody stands on two sides) or "clip" (the notebooks' protocol);
            an official split column wins over both.
        test: positions of the test clips, when a fold has already chosen them.
        validate: False leaves no clip for validation.

    Raises:
        InputError: too few people to have both labels in training.
    """
    everything = np.arange(len(frame))
    split = {name: np.flatnonzero(frame["split"] == name) for name in SPLITS if "split" in frame}
    val = split.get("val", everything[:0])
    if test is None:
        test = split.get("test", everything[:0])
        if split and not len(test):  # AVEC's test labels are rarely at hand
            test, val = val, test
    try:
        if not len(test):
            test = _hold_out(frame, TEST_FRACTION, by, seed)[1]
        rest = np.setdiff1d(everything, np.union1d(test, val))
        if validate and not len(val):
            fraction = VAL_FRACTION * len(frame) / len(rest)
            val = rest[_hold_out(frame.iloc[rest], fraction, by, seed)[1]]
            rest = np.setdiff1d(rest, val)
        if len(set(frame["label"].iloc[rest])) < 2:
            raise ValueError("one label only in training")
    except (ValueError, ZeroDivisionError) as error:  # scikit-learn's, of fewer people than folds
        people = [rows["participant"].nunique() for rows in (frame, frame[frame["label"] == 1])]
        raise InputError(
            f"{people[0]} participants ({people[1]} with label 1) are too few to keep people apart "
            "with both labels in training: add people, or try --patience 0 or --folds people"
        ) from error
    return {"train": rest, "val": np.sort(val), "test": np.sort(test)}
