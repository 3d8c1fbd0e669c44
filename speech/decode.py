"""What libsndfile does not read (m4a, webm, 3gp and so on), decoded by FFmpeg's libraries in PyAV.

speech/audio.py calls it in a process of its own: FFmpeg reads too much to be trusted.

Shapes: k samples of a block.
"""

import contextlib
import re
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
KINDS = {  # how files begin, or go on at one of PLACES, that people choose by mistake
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an Office document",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"{\\rtf": "an RTF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"WEBP": "a WebP picture",
    b"AVI ": "an AVI video",
    b"MThd": "a MIDI file: notes, no sound",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
KINDS |= dict.fromkeys((b"II*\0", b"MM\0*"), "a TIFF picture")
KINDS |= dict.fromkeys((b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1"), "a HEIC picture")
KINDS |= dict.fromkeys((b"ftypavif", b"ftypavis"), "an AVIF picture")
ARCHIVES = (b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ", b"ustar")
KINDS |= dict.fromkeys(ARCHIVES, "an archive: unpack it")
PLACES = 0, 4, 8, 257  # of MP4's, RIFF's and tar's kinds
SOUNDS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"FORM": ".aif"}
SOUNDS |= {b"\xff\xfb": ".mp3", b"ftyp": ".m4a", b"\x1aE\xdf\xa3": ".webm"}
NO_SOUND = KINDS | {b"\x93NUMPY": "a NumPy array: name it .npy"}
NO_CLIP = KINDS | {start: f"sound: name it {suffix}" for start, suffix in SOUNDS.items()}


def read_start(source: str | Path | bytes) -> bytes:
    """How a file begins; empty where it cannot be read, which whoever opens it will say."""
    if isinstance(source, bytes):
        return source[:PROBE_BYTES]
    with contextlib.suppress(OSError, InputError), open_file(source) as file:
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


def name_kind(source: str | Path | bytes, kinds: dict[bytes, str] = NO_SOUND) -> str:
    """What a file is that is not what its name says, "" where that is not known."""
    start = read_start(source).lstrip().lower()
    for head, kind in kinds.items():
        if any(start.startswith(head.lower(), place) for place in PLACES):
            return kind
    is_text = b"\n" in start and re.fullmatch(rb"[\t\r\n -\xff]+", start)
    return "text" if is_text else ""


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
                video = "a video without sound" if container.streams.video else ""
                raise InputError(f"not readable as sound ({video or 'there is none in it'})")
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
