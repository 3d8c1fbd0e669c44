"""Sound becomes log-mel clips: decoding, resampling, cutting, the transform, the dataset's files.

Shapes: n samples, k samples of a block, M mel bins, T frames.
"""

import hashlib
import json
import os
import platform
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from speech import apart
from speech.cli import (
    InputError,
    check_format,
    check_writable,
    locked,
    open_file,
    read_file,
    write_atomically,
    write_json,
)
from speech.dataset import compose, min_max
from speech.decode import SUFFIXES, is_foreign, name_kind, read_announced, read_frames

import numpy as np
import pandas as pd

if TYPE_CHECKING:  # soundfile and librosa are imported where sound is read, not by training
    from soundfile import SoundFile

# The notebooks' clips: 8 s become 8 * 16000 // 512 + 1 = 251 frames of 128 mel bins.
SETTINGS = dict(sample_rate=16_000, n_fft=2048, hop_length=512, n_mels=128, clip_seconds=8)
# What libsndfile or FFmpeg reads, by its suffix.
ENDINGS = f"wav|flac|ogg|opus|mp3|aif|aiff|au|caf|w64|{SUFFIXES}"
SOUND = rf"\.(?:{ENDINGS})"
SAMPLES_PER_BLOCK = 2**18  # over all channels: 1 MB
SAMPLE_RATES = (1_000, 1_000_000)  # Hz; a header outside is damaged or malicious
MAX_FRAMES = 2**48  # likewise: 550 years at 16 kHz
STREAMED = 2**31 - 2**16  # bytes; a WAV written to a pipe claims more than this
LEAST_PEAK = 1e-4  # of full scale, -80 dBFS: below is a 16-bit recorder's own noise
OPPOSITE = 0.01  # the channels' mean has less than this part of the louder one's power, -20 dB:
# a wire is swapped. Channels that have nothing to do with each other leave half.
# Of a recording, to find that out; a bound on the work, as Stop and limits wait for it: an hour of
# an MP3 takes 9 s, this 1.5 s.
COMPARED_SECONDS = 600
NPY_HEADER = 128  # bytes that numpy writes before the values of a small array


# --- the transform ------------------------------------------------------------------------------


LOADING = threading.Lock()


@lru_cache(1)
def load_librosa() -> ModuleType:
    """Imported as it is, it compiles for 15 s, once for each user, what log_mel never calls.

    BLAS has one thread from here on: with two predict.py takes a sixth more of the processor and as
    long, and its clips differ in their last bits from those that prepare.py's processes make.
    """
    import numba
    from threadpoolctl import threadpool_limits

    with LOADING:  # two threads would each take the other's patch for numba's own
        eager = numba.guvectorize, numba.vectorize
        numba.guvectorize = numba.vectorize = lambda *_, **__: lambda function: function
        try:
            import librosa

            # It imports its parts as they are called.
            librosa.power_to_db(np.abs(librosa.stft(np.zeros(512, np.float32), n_fft=512)))
            librosa.filters.mel(sr=8000, n_fft=512, n_mels=8)
            threadpool_limits(1, user_api="blas")
            return librosa
        finally:
            numba.guvectorize, numba.vectorize = eager


@lru_cache(8)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """(M, n_fft // 2 + 1). librosa's melspectrogram computes them for every clip: a quarter of its
    time.
    """
    return load_librosa().filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels)


def log_mel(samples: np.ndarray, settings: dict = SETTINGS) -> np.ndarray:
    """The notebooks' spectrogram: mel power in dB below its maximum, scaled to [0, 1].

    Args:
        samples: float32 array (n,) at settings["sample_rate"].

    Returns:
        float32 array (M, T), T = n // hop_length + 1.

    Raises:
        InputError: silent, or so nearly that it is the recorder's noise.
    """
    if np.abs(samples - samples.mean()).max() < LEAST_PEAK:  # its offset is no sound
        raise InputError("silent")
    rate, n_fft, hop, n_mels = (
        settings[name] for name in ("sample_rate", "n_fft", "hop_length", "n_mels")
    )
    librosa = load_librosa()
    frames = np.abs(librosa.stft(samples, n_fft=n_fft, hop_length=hop)) ** 2
    power = np.einsum("ft,mf->mt", frames, mel_filters(rate, n_fft, n_mels), optimize=True)
    return min_max(librosa.power_to_db(power, ref=np.max))


def warm_up(settings: dict = SETTINGS) -> None:
    """Loads and computes what every log_mel needs: 2 s once, not in each of the forked processes.

    Nothing here multiplies: no process may be forked from one in which BLAS's threads run.
    """
    mel_filters(*(settings[name] for name in ("sample_rate", "n_fft", "n_mels")))


# --- recordings on disk -------------------------------------------------------------------------

MOST_KNOWN = 4096  # files; the page runs for months
MEMORIES = []  # of what is known about files, by path: what identifies a file, and the result


def cached_by_file(function: Callable) -> Callable:
    """Remembers what `function` found out about each file, for as long as the file is the same."""
    MEMORIES.append(known := {})

    @wraps(function)
    def ask(path: str | Path) -> object:
        try:
            facts = os.stat(path)
        except OSError:  # the function says so
            return function(path)
        same = facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
        identity, result = known.get(path, (None, None))
        if identity != same:
            result = function(path)
            known[path] = same, result
            if len(known) > MOST_KNOWN:
                known.pop(next(iter(known)), None)
        return result

    return ask


def forget_files() -> None:
    """Of strangers' files that are gone not even the names are kept."""
    for known in MEMORIES:
        for path in [path for path in list(known) if not os.path.exists(path)]:
            known.pop(path, None)


@cached_by_file
def hash_file(path: str | Path) -> str:
    """Of its content. 1 GB takes 1 to 2 s, less than reading it from a disk."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def name_sound(path: Path) -> str:
    """A recording in messages: corpora give files in different folders the same name."""
    return f"{path.parent.name}/{path.name}"


SYSTEMS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")  # folders on every disk


def refuse_unreadable(error: OSError) -> None:
    """Of a folder, unless it is none or gone, or the one that is the system's on every disk."""
    gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    if not gone and Path(error.filename).name not in SYSTEMS:
        reason = f"cannot be read ({error.strerror}): allow it, or move it elsewhere"
        raise InputError(f"{error.filename}: {reason}") from error


def list_files(source: Path, dangling: list[Path] | None = None) -> dict[str, Path]:
    """All regular files below `source` by their path from there, without hidden ones.

    macOS leaves hidden `._` twins. Linked folders are followed, but each folder is visited once:
    a link to one that encloses it would multiply its files.

    Args:
        dangling: links to nothing are appended, as git-annex has where the content is elsewhere.

    Raises:
        InputError: a folder cannot be read.
    """
    files, visited, waiting = {}, set(), [source]
    while waiting:
        for folder, folders, names in os.walk(waiting.pop(0), onerror=refuse_unreadable):
            facts = os.stat(folder)
            if (facts.st_dev, facts.st_ino) in visited:
                folders.clear()
                continue
            visited.add((facts.st_dev, facts.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            # Links come last, so that a file's path is the one without a link.
            waiting += [path for name in folders if (path := Path(folder, name)).is_symlink()]
            for name in sorted(name for name in names if not name.startswith(".")):
                path = Path(folder, name)
                if path.is_file():
                    files[path.relative_to(source).as_posix()] = path
                elif dangling is not None and not path.exists():
                    dangling.append(path)
    return files


def match_names(names: Iterable[str], files: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Which of `files` each name means, in whichever Unicode form, and hints on those not there.

    macOS writes names decomposed (NFD), spreadsheets write them composed (NFC). A name without a
    suffix means the recording of that name, where there is one only.
    """
    files, stems = list(files), {}
    for name in files:
        stems.setdefault(re.sub(f"(?i){SOUND}$", "", compose(name)), []).append(name)
    known = {stem: alike[0] for stem, alike in stems.items() if len(alike) == 1}
    known |= {compose(name): name for name in files} | {name: name for name in files}
    lower = {name.lower(): file for name, file in known.items()}
    found, missing = {}, []
    for name in names:
        if file := known.get(name) or known.get(compose(name)):
            found[name] = file
            continue
        other = lower.get(compose(name).lower())
        missing.append(f"{name} ({other} differs in case: rename it)" if other else name)
    return found, missing


# --- decoding -----------------------------------------------------------------------------------


class UnreadableSound(InputError):
    """A recording that cannot be read. The message does not name its path."""


class Facts(NamedTuple):
    """What a recording's header says."""

    seconds: float  # of FFmpeg's files they can be far off
    channels: int  # that are told apart; FFmpeg's are always averaged: they are one
    density: int  # samples a second, of all channels


class UnfinishedWav:
    """A WAV file whose header says "to the end": its recorder crashed before it wrote how long.

    libsndfile reads files of this kind, by `read`, `seek` and `tell`.
    """

    def __init__(self, file: BinaryIO, sizes: Iterable[int]):
        self.file = file
        self.sizes = list(sizes)  # where in the header a size stands, in 4 bytes

    def read(self, count: int = -1) -> bytes:
        first = self.file.tell()
        data = bytearray(self.file.read(count))
        for size in self.sizes:
            for place in range(max(size, first), min(size + 4, first + len(data))):
                data[place - first] = 0xFF  # the largest size is how a WAV from a pipe says so
        return bytes(data)

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()


def find_data(file: BinaryIO) -> tuple[int, int] | None:
    """Where the samples of a WAV file begin, and how many bytes of them its header claims."""
    begin = file.read(12)
    if begin[:4] != b"RIFF" or begin[8:] != b"WAVE":
        return None
    while len(chunk := file.read(8)) == 8:
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            return file.tell(), size
        file.seek(size + size % 2, os.SEEK_CUR)
    return None


def is_unfinished(file: BinaryIO, start: int, claimed: int) -> bool:
    """Whether sound follows the `claimed` bytes of samples that begin at `start`.

    Chunks may follow (they begin with four letters) or tags; zeros after samples are padding.
    """
    file.seek(start + claimed + claimed % 2)
    rest = file.read(2**16)
    named = re.match(rb"[A-Za-z][A-Za-z0-9 _]{3}|ID3|TAG", rest)
    return len(rest) > 8 and not named and (not claimed or any(rest))


def finish_header(file: BinaryIO) -> UnfinishedWav | None:
    """The file, readable to its end, if it is a WAV whose header was never finalised."""
    found = find_data(file)
    if found is None or not is_unfinished(file, *found):
        return None
    return UnfinishedWav(file, [4, found[0] - 4])


def open_repaired(raw: BinaryIO, path: str | Path) -> "SoundFile":
    """Opens the recording, its header finished if need be."""
    import soundfile

    repaired = finish_header(raw)
    if repaired is None:
        return soundfile.SoundFile(path)
    repaired.seek(0)
    return soundfile.SoundFile(repaired)


@contextmanager
def open_sound(path: str | Path) -> Iterator["SoundFile"]:
    """Yields a soundfile.SoundFile whose header has been checked; `.name` is what it reads."""
    try:
        # open_file says what is wrong, and that a pipe is no recording.
        with open_file(path) as raw, open_repaired(raw, path) as file:
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
    except UnreadableSound:
        raise
    except InputError as error:
        raise UnreadableSound(str(error)) from error
    except OSError as error:
        raise UnreadableSound(f"cannot be read ({error.strerror})") from error
    except (RuntimeError, TypeError) as error:  # TypeError: a name ending in .raw has no header
        reason = getattr(error, "error_string", str(error)).rstrip(".")
        raise UnreadableSound(f"not readable as sound ({reason})") from error


def frame_range(frames: int, rate: int, start: float, stop: float | None) -> tuple[int, int]:
    """From `start` to `stop` seconds (None: the end) as frames, no further than there are."""
    last = frames if stop is None else min(round(stop * rate), frames)
    return min(round(start * rate), last), last


def list_notes(file: "SoundFile", channel: int | None) -> list[str]:
    """What a user should know of how a recording is read."""
    notes = []
    if isinstance(file.name, UnfinishedWav):
        notes.append("its header was never finalised: read to its end")
    if channel is not None:
        found = "the channels cancel each other out (opposite phase)"
        notes.append(f"{found}: channel {channel + 1}, the louder one, is read")
    return notes


def find_facts(path: str) -> Iterator[Facts]:
    if is_foreign(path):
        seconds, density = read_announced(path)
        yield Facts(seconds, 1, density)
        return
    with open_sound(path) as file:
        rate, channels = file.samplerate, file.channels
        yield Facts(file.frames / rate, channels, rate * channels)


def find_length(path: str) -> Iterator[tuple[int, int] | None]:
    """Yields None now and then, at last how many frames a recording has, and how many a second."""
    if is_foreign(path):  # what its header says can be far off
        blocks, frames = read_frames(path, 0.0, None), 0
        rate = next(blocks)
        for block in blocks:
            frames += len(block)
            yield None
        yield frames, rate
        return
    with open_sound(path) as file:
        yield file.frames, file.samplerate


def find_channel(path: str) -> Iterator[int | None]:
    """Yields None now and then, at last the one channel to read; None: the mean of all.

    The loudest is read where the channels cancel each other out.
    """
    with open_sound(path) as file:
        power, mean_power, left = np.zeros(file.channels), 0.0, COMPARED_SECONDS * file.samplerate
        length = max(SAMPLES_PER_BLOCK // file.channels, 1)
        while left > 0:
            block = file.read(min(length, left), dtype="float32", always_2d=True)
            if not len(block) or not np.isfinite(block).all():  # whoever reads that far will say so
                break
            power += np.square(block, dtype=float).sum(axis=0)
            mean_power += float(np.square(block.mean(axis=1), dtype=float).sum())
            left -= len(block)
            yield None
    yield int(power.argmax()) if mean_power < OPPOSITE * power.max() else None


def decode(path: str, start: float, stop: float | None, channel: int | None) -> Iterator:
    """Yields the sample rate and a list of notes, then float32 arrays (k,)."""
    if is_foreign(path):
        blocks = read_frames(path, start, stop)
        yield next(blocks), []
        yield from blocks
        return
    with open_sound(path) as file:
        yield file.samplerate, list_notes(file, channel)
        frames = frame_range(file.frames, file.samplerate, start, stop)
        yield from read_blocks(file, *frames, channel)


def call(reader: Callable[..., Iterator], path: str | Path, *arguments: object) -> Iterator:
    """What one of the four above yields; in a process of its own, where the file may be harmful."""
    path = os.path.abspath(path)
    harmful = apart.everything or is_foreign(path)
    try:
        yield from apart.run(reader, path, *arguments) if harmful else reader(path, *arguments)
    except InputError as error:
        kind = name_kind(path)
        reason = f"not readable as sound ({kind})" if kind else str(error)
        raise UnreadableSound(reason) from error


def last(results: Iterable) -> object:
    """The ones before it say that there is work, and keep it from being taken for stalled."""
    *_, result = results
    return result


@cached_by_file
def read_facts(path: str | Path) -> Facts:
    return Facts(*next(call(find_facts, path)))


@cached_by_file
def choose_channel(path: str | Path) -> int | None:
    """The one channel that is read of a recording; None: the mean of all.

    Decided once for the whole recording, however many turns are read from it, so that a voice does
    not change sides. That reads one of several channels twice; memory stays flat.
    """
    return None if read_facts(path).channels == 1 else last(call(find_channel, path))


def read_notes(path: str | Path) -> list[str]:
    """The notes that read_sound gives."""
    _, notes = next(call(decode, path, 0.0, 0.0, choose_channel(path)))
    return notes


@cached_by_file
def read_header(path: str | Path) -> tuple[int, int]:
    """How many frames a recording has, and how many in a second; FFmpeg's are decoded to count."""
    return tuple(last(call(find_length, path)))


def count_samples(path: Path, sample_rate: int, start: float, stop: float | None) -> int:
    """How many samples read_sound is going to give, within one, by what read_header finds."""
    frames, rate = read_header(path)
    first, last = frame_range(frames, rate, start, stop)
    return round((last - first) * sample_rate / rate)


def read_sound(
    path: str | Path,
    sample_rate: int = SETTINGS["sample_rate"],
    start: float = 0.0,
    stop: float | None = None,
    notes: list[str] | None = None,
) -> Iterator[np.ndarray]:
    """Reads from `start` to `stop` seconds (or the end), mono, in blocks: memory stays flat.

    Args:
        notes: what a user should know of how it was read is appended, before the first block.

    Yields:
        float32 arrays (k,) at `sample_rate`, channels averaged (of channels that cancel each other
        out, the louder one), resampled by soxr.

    Raises:
        UnreadableSound: not sound that libsndfile or FFmpeg reads, empty, cut short or with NaN
            in it.
    """
    blocks = call(decode, path, start, stop, choose_channel(path))
    rate, found = next(blocks)
    if notes is not None:
        notes += found
    yield from blocks if rate == sample_rate else resample(blocks, rate, sample_rate)


def read_blocks(
    file: "SoundFile", first: int, last: int, channel: int | None
) -> Iterator[np.ndarray]:
    """Frames `first` to `last` in float32 arrays (k,): one channel, or all averaged (None)."""
    file.seek(first)
    length = max(SAMPLES_PER_BLOCK // file.channels, 1)
    while first < last:  # SoundFile.blocks() repeats samples where a file is cut short
        block = file.read(min(length, last - first), dtype="float32", always_2d=True)
        if not len(block):
            raise UnreadableSound(f"cut short: {(last - first) / file.samplerate:.1f} s missing")
        if not np.isfinite(block).all():
            raise UnreadableSound("holds NaN or infinite samples")
        first += len(block)
        yield block.mean(axis=1) if channel is None else block[:, channel].copy()


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


# --- a dataset made from sound ------------------------------------------------------------------

# Of dataset.json. Format 1 had no number and means the same as format 2; both know a recording by
# its size, format 3 by its content.
DATASET_FORMAT = 3
DATASET_COLUMNS = ("id", "label", "participant", "split", "fold", "gender")  # of dataset.csv


def is_complete(path: Path, settings: dict = SETTINGS) -> bool:
    """Whether a clip's file has its size: a file not fsynced can be empty after a power cut."""
    frames = settings["sample_rate"] * settings["clip_seconds"] // settings["hop_length"] + 1
    size = NPY_HEADER + 4 * settings["n_mels"] * frames
    return path.exists() and path.stat().st_size == size


@contextmanager
def writing_dataset(out: Path) -> Iterator[None]:
    """Refuses a second run that would write there, and removes what a killed one did not finish."""
    check_writable(out / "Spectrograms" / "clip.npy")
    with locked(out / "dataset.csv"):
        remove_unfinished(out)
        try:
            yield
        finally:
            remove_unfinished(out)  # a worker that was killed leaves its own


def remove_unfinished(out: Path) -> None:
    for folder in ("Spectrograms", "Recordings"):
        for path in (out / folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)


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
        info = json.loads(read_file(path))
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
