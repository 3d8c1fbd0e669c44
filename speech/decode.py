"""What libsndfile does not read (m4a, webm, 3gp and so on), decoded by FFmpeg's libraries in PyAV.

In a process of its own, with limits: a file that kills or stalls a decoder, or makes it eat
memory, is an error for whoever sent it, and nobody else notices.

Shapes: k samples of a block.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from speech.cli import InputError, open_file

if TYPE_CHECKING:
    import av

SUFFIXES = "m4a|mp4|webm|3gp|3g2|aac|amr|wma|mka|mkv|mov"  # that people's recorders write
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,amr,amrnb,amrwb,asf"  # no playlists
BLOCK_BYTES = 2**20
STALL_SECONDS = 15.0  # without a block; an hour of AAC decodes in 5 s
CPU_SECONDS = 120
MEMORY_BYTES = 2**30  # of address space; an hour of AAC takes a quarter
PROBE_BYTES = 4096
KINDS = {  # how files begin that people choose by mistake
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"\x93NUMPY": "a NumPy array: name it .npy",
}


def read_start(path: str | Path) -> bytes:
    """How a file begins; empty where it cannot be read, which whoever opens it will say."""
    with contextlib.suppress(OSError, InputError), open_file(path) as file:
        return file.read(PROBE_BYTES)
    return b""


def is_foreign(path: str | Path) -> bool:
    """Whether FFmpeg is to read it, by its content: a recording may have any name."""
    start = read_start(path)
    return (
        start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # MP4, 3GP, QuickTime
        or start.startswith(b"\x1aE\xdf\xa3")  # Matroska, WebM
        or start.startswith(b"#!AMR")
        or start.startswith(b"0&\xb2u\x8ef\xcf\x11")  # WMA
        or (start[:1] == b"\xff" and start[1:2] in (b"\xf1", b"\xf9", b"\xf0", b"\xf8"))  # AAC
    )


def name_kind(path: str | Path) -> str:
    """What a file is that is no sound, "" where that is not known."""
    start = read_start(path).lstrip().lower()
    return next((kind for head, kind in KINDS.items() if start.startswith(head.lower())), "")


# --- this process -------------------------------------------------------------------------------


@contextlib.contextmanager
def decoder(path: str | Path, start: float, stop: float | None) -> Iterator[subprocess.Popen]:
    """A child that decodes; it is gone when this is left, however that happens."""
    command = [sys.executable, "-m", "speech.decode", os.path.abspath(path), repr(start)]
    child = subprocess.Popen(
        command + ([] if stop is None else [repr(stop)]),
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def read_exactly(child: subprocess.Popen, count: int) -> bytes:
    """What the child writes next, at most `count` bytes; kills a child that writes nothing."""
    stalled = threading.Timer(STALL_SECONDS, child.kill)
    stalled.start()
    try:
        return child.stdout.read(count)
    finally:
        stalled.cancel()


def explain_end(child: subprocess.Popen) -> str:
    """Why a child ended before its time."""
    _, errors = child.communicate()
    lines = errors.decode(errors="replace").strip().splitlines()
    if child.returncode == 2 and lines:
        return lines[-1]
    return "not readable as sound (its decoder was stopped: damaged, or too much to decode)"


def decode(
    path: str | Path, start: float = 0.0, stop: float | None = None
) -> tuple[int, Iterator[np.ndarray]]:
    """Decodes from `start` to `stop` seconds (or the end), channels averaged.

    Returns:
        The sample rate, and float32 arrays (k,); the decoder ends when they are read or dropped.

    Raises:
        InputError: not sound, damaged, or over the limits; also while the arrays are read.
    """
    blocks = read_child(path, start, stop)
    return int(next(blocks)[0]), blocks


def read_child(path: str | Path, start: float, stop: float | None) -> Iterator[np.ndarray]:
    """The sample rate in an array of its own, then the samples."""
    with decoder(path, start, stop) as child:
        head = read_exactly(child, 4)
        if len(head) < 4:
            raise InputError(explain_end(child))
        yield np.frombuffer(head, "<i4")
        while data := read_exactly(child, BLOCK_BYTES):
            yield np.frombuffer(data[: len(data) // 4 * 4], "<f4")
        if child.wait(STALL_SECONDS):
            raise InputError(explain_end(child))


# --- the child ----------------------------------------------------------------------------------


def limit_resources() -> None:
    """No more memory, time and files than a recording needs."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock has to do
        return
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on address space
            resource.setrlimit(kind, (most, most))


def write_frames(container: "av.container.InputContainer", start, stop, out: BinaryIO) -> None:
    import av

    stream = container.streams.audio[0]
    stream.thread_type = "NONE"
    if start > 1:  # a second earlier: a decoder needs a few frames to settle
        container.seek(int((start - 1) * av.time_base), backward=True)
    convert, rate, written = None, 0, 0
    first = float((stream.start_time or 0) * stream.time_base)
    for frame in container.decode(stream):
        if not convert:
            rate = frame.sample_rate
            convert = av.AudioResampler(format="fltp", layout=frame.layout, rate=rate)
            out.write(np.array([rate], "<i4").tobytes())
        at = 0.0 if frame.time is None else frame.time - first
        for part in convert.resample(frame):
            samples = part.to_ndarray().mean(axis=0, dtype=np.float32)
            skip = max(round((start - at) * rate), 0)
            keep = len(samples) if stop is None else round((stop - start) * rate) - written
            samples = samples[skip:][: max(keep, 0)]
            if not np.isfinite(samples).all():
                raise InputError("holds NaN or infinite samples")
            out.write(samples.astype("<f4").tobytes())
            written += len(samples)
        if stop is not None and written >= round((stop - start) * rate):
            return
    if not written and not start:
        raise InputError("empty")


def main() -> int:
    """Writes the sample rate and the samples to stdout, or what is wrong to stderr."""
    import av

    path, start, *stop = sys.argv[1:]
    limit_resources()
    av.logging.set_level(None)
    try:
        # A playlist would make FFmpeg open other files, or addresses.
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        with av.open(path, options=options) as container:
            if not container.streams.audio:
                raise InputError("there is no sound in it")
            limits = float(start), float(stop[0]) if stop else None
            write_frames(container, *limits, sys.stdout.buffer)
            sys.stdout.flush()
    except (InputError, av.FFmpegError, MemoryError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        known = isinstance(error, InputError)
        print(reason if known else f"not readable as sound ({reason})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
