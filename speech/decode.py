"""What libsndfile does not read (m4a, webm, 3gp and so on), decoded by FFmpeg's libraries in PyAV.

speech/audio.py calls it in a process of its own: FFmpeg reads too much to be trusted.

Shapes: k samples of a block.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from speech.cli import InputError, open_file

import numpy as np

if TYPE_CHECKING:
    import av

SUFFIXES = "m4a|mp4|webm|3gp|3g2|aac|amr|wma|mka|mkv|mov"  # that people's recorders write
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac,amr,amrnb,amrwb,asf"  # no playlists
BLOCK = 2**16  # samples; FFmpeg's own frames have a thousand
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


# --- decoding -----------------------------------------------------------------------------------


@contextlib.contextmanager
def open_container(path: str | Path) -> Iterator["av.container.InputContainer"]:
    """Yields a container that has sound; InputError for whatever is wrong with it."""
    import av

    av.logging.set_level(None)
    try:
        # A playlist would make FFmpeg open other files, or addresses.
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        with av.open(str(path), options=options) as container:
            if not container.streams.audio:
                raise InputError("there is no sound in it")
            yield container
    except InputError:
        raise
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"not readable as sound ({reason})") from error


def read_announced(path: str | Path) -> tuple[float, int]:
    """The seconds of the file's header, which can be far off, 0 if it has none, and the samples in
    one of them, of all channels.
    """
    with open_container(path) as container:
        stream = container.streams.audio[0]
        return (container.duration or 0) / 1e6, (stream.rate or 0) * (stream.channels or 0)


def read_frames(path: str | Path, start: float, stop: float | None) -> Iterator:
    """Yields the sample rate, then from `start` to `stop` seconds (None: the end) as blocks.

    The blocks are float32 arrays (k,), channels averaged.
    """
    with open_container(path) as container:
        rate, waiting, written = None, [], 0
        for at, rate_now, samples in decode_frames(container, start):
            if rate is None:
                yield (rate := rate_now)
            samples = samples[max(round((start - at) * rate), 0) :]
            if stop is not None:
                samples = samples[: max(round((stop - start) * rate) - written, 0)]
            waiting.append(samples)
            written += len(samples)
            done = stop is not None and written >= round((stop - start) * rate)
            if done or sum(map(len, waiting)) >= BLOCK:
                yield join(waiting)
                waiting = []
            if done:
                return
        if not written and not start:
            raise InputError("empty")
        if rate is None:  # it ends before `start`
            yield container.streams.audio[0].rate
        yield join(waiting)


def join(parts: list[np.ndarray]) -> np.ndarray:
    block = np.concatenate([np.empty(0, np.float32), *parts])
    if not np.isfinite(block).all():
        raise InputError("holds NaN or infinite samples")
    return block


def decode_frames(
    container: "av.container.InputContainer", start: float
) -> Iterator[tuple[float, int, np.ndarray]]:
    """Yields where a frame stands in seconds, its rate and samples (k,), from before `start`."""
    import av

    stream, convert = container.streams.audio[0], None
    stream.thread_type = "NONE"
    if start > 1:  # a second earlier: a decoder needs a few frames to settle
        container.seek(int((start - 1) * av.time_base), backward=True)
    first = float((stream.start_time or 0) * stream.time_base)
    for frame in container.decode(stream):
        convert = convert or av.AudioResampler("fltp", frame.layout, frame.sample_rate)
        at = 0.0 if frame.time is None else frame.time - first
        for part in convert.resample(frame):
            yield at, part.sample_rate, part.to_ndarray().mean(axis=0, dtype=np.float32)
