"""Sound becomes log-mel clips: decoding, resampling, cutting, the transform, the dataset's files.

Shapes: n samples, k samples of a block, M mel bins, T frames.
"""

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from speech.cli import InputError, check_format, write_atomically, write_json
from speech.dataset import min_max

if TYPE_CHECKING:  # soundfile and librosa are imported where sound is read, not by training
    from soundfile import SoundFile

# The notebooks' clips: 8 s become 8 * 16000 // 512 + 1 = 251 frames of 128 mel bins.
SETTINGS = dict(sample_rate=16_000, n_fft=2048, hop_length=512, n_mels=128, clip_seconds=8)
SOUND = r"\.(?:wav|flac|ogg|opus|mp3|aiff?|au|caf|w64)"  # what libsndfile reads, by its suffix
SAMPLES_PER_BLOCK = 2**18  # over all channels: 1 MB
SAMPLE_RATES = (1_000, 1_000_000)  # Hz; a header outside is damaged or malicious
MAX_FRAMES = 2**48  # likewise: 550 years at 16 kHz
STREAMED = 2**31 - 2**16  # bytes; a WAV written to a pipe claims more than this
NPY_HEADER = 128  # bytes that numpy writes before the values of a small array


# --- the transform ------------------------------------------------------------------------------


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
    options = {name: settings[name] for name in ("n_fft", "hop_length", "n_mels")}
    power = librosa.feature.melspectrogram(y=samples, sr=settings["sample_rate"], **options)
    return min_max(librosa.power_to_db(power, ref=np.max))


# --- decoding -----------------------------------------------------------------------------------


class UnreadableSound(InputError):
    """A recording that cannot be read. The message does not name its path."""


@contextmanager
def open_sound(path: str | Path) -> Iterator["SoundFile"]:
    """Yields a soundfile.SoundFile whose header has been checked."""
    import soundfile

    try:
        with open(path, "rb"), soundfile.SoundFile(path) as file:  # open() says what is wrong
            if not file.frames:
                raise UnreadableSound("empty")
            low, high = SAMPLE_RATES
            if not low <= file.samplerate <= high or file.frames > MAX_FRAMES:
                found = f"{file.frames} samples at {file.samplerate} Hz"
                raise UnreadableSound(f"malformed header: {found}")
            # libsndfile reads as much as there is of such a file, and only notes it in its log.
            cut = re.search(r"(?i)(?:data|ssnd|riff) *: (\d+) \(should be (\d+)", file.extra_info)
            if cut and int(cut[2]) < int(cut[1]) < STREAMED:
                raise UnreadableSound(f"cut short: {cut[2]} of its {cut[1]} bytes are there")
            yield file
    except OSError as error:
        raise UnreadableSound(f"cannot be read ({error.strerror})") from error
    except (RuntimeError, TypeError) as error:  # TypeError: a name ending in .raw has no header
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise UnreadableSound(f"not readable as sound ({reason})") from error


def frame_range(frames: int, rate: int, start: float, stop: float | None) -> tuple[int, int]:
    """From `start` to `stop` seconds (None: the end) as frames, no further than there are."""
    last = frames if stop is None else min(round(stop * rate), frames)
    return min(round(start * rate), last), last


@cache
def read_header(path: Path) -> tuple[int, int]:
    """How many frames a recording has, and how many in a second."""
    with open_sound(path) as file:
        return file.frames, file.samplerate


def count_samples(path: Path, sample_rate: int, start: float, stop: float | None) -> int:
    """How many samples read_sound is going to give, within one, by the header alone."""
    frames, rate = read_header(path)
    first, last = frame_range(frames, rate, start, stop)
    return round((last - first) * sample_rate / rate)


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
        UnreadableSound: not sound that libsndfile reads, empty, cut short or with NaN in it.
    """
    with open_sound(path) as file:
        blocks = read_blocks(file, *frame_range(file.frames, file.samplerate, start, stop))
        if file.samplerate != sample_rate:
            blocks = resample(blocks, file.samplerate, sample_rate)
        yield from blocks


def read_blocks(file: "SoundFile", first: int, last: int) -> Iterator[np.ndarray]:
    """Frames `first` to `last` in float32 arrays (k,), channels averaged."""
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
    """Blocks (k,) at `rate` Hz to blocks at `new_rate` Hz, as if they were one array."""
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


# --- recordings on disk -------------------------------------------------------------------------


def list_files(source: Path) -> dict[str, Path]:
    """All files below `source` by their path from there, without macOS's hidden `._` twins."""
    files = {}
    for folder, folders, names in os.walk(source, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            files[path.relative_to(source).as_posix()] = path
    return files


def name_sound(path: Path) -> str:
    """A recording in messages: corpora give files in different folders the same name."""
    return f"{path.parent.name}/{path.name}"


# --- a dataset made from sound ------------------------------------------------------------------

DATASET_FORMAT = 2  # of dataset.json; format 1 had no number and means the same
DATASET_COLUMNS = ("id", "label", "participant", "split", "gender")  # of dataset.csv


def is_complete(path: Path, settings: dict = SETTINGS) -> bool:
    """Whether a clip's file has its size: a file not fsynced can be empty after a power cut."""
    frames = settings["sample_rate"] * settings["clip_seconds"] // settings["hop_length"] + 1
    size = NPY_HEADER + 4 * settings["n_mels"] * frames
    return path.exists() and path.stat().st_size == size


def write_info(out: Path, info: dict) -> None:
    """Writes dataset.json: at first, so that the next run knows what this one was making."""
    write_json(out / "dataset.json", {"format": DATASET_FORMAT} | info)


def read_info(out: Path) -> dict | None:
    """What dataset.json says: {} of another program's dataset, None where there is no dataset.

    Raises:
        InputError: written by a newer version.
    """
    path = out / "dataset.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        check_format(info, DATASET_FORMAT)
    except (FileNotFoundError, NotADirectoryError):
        clips = (out / "Spectrograms").glob("*.npy")
        return {} if (out / "dataset.csv").exists() or any(clips) else None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, AttributeError):  # not JSON, or not an object
        return {}
    return info


def write_dataset(out: Path, rows: list[dict], info: dict) -> None:
    """Writes dataset.json, and last dataset.csv: where that is, the dataset is complete.

    Args:
        rows: one per clip, with `DATASET_COLUMNS` as keys; a column without any value is left out.
        info: corpus, synthetic and whatever else is worth keeping; settings, versions, counts
            and corrections are added where it has none.
    """
    frame = pd.DataFrame(rows, columns=DATASET_COLUMNS).dropna(axis=1, how="all")
    packages = {name: version(name) for name in ("librosa", "numpy", "soundfile", "soxr")}
    defaults = {
        "corpus": None,
        "synthetic": False,
        "settings": SETTINGS,
        "versions": {"python": platform.python_version(), **packages},
        "counts": {"clips": len(frame), "participants": frame["participant"].nunique()},
        "corrections": [],
    }
    write_info(out, defaults | info)
    with write_atomically(out / "dataset.csv") as path:
        frame.to_csv(path, index=False, lineterminator="\n")
