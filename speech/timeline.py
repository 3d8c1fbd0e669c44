"""The timeline of a result, and the spectrogram of one of its windows, in HTML.

Shapes: M mel bins, T frames.
"""

import base64
import io
import json
from html import escape
from pathlib import Path
from typing import NamedTuple

from speech.card import CLASSES
from speech.report import CLASS_NAMES
from speech.verdict import Row, format_number
from speech.words import SWEPT

import numpy as np
from PIL import Image, ImageOps

LEAST_SHOWN = 0.02  # a patch that moves a probability by less is painted fainter
OCTAVES = (250, 500, 1000, 2000, 4000, 8000, 16_000)  # Hz
BLUE, ORANGE = "#3b82f6", "#ea580c"  # of the overlay; told apart by colour-blind eyes too
MOST_TICKS = 8  # of a timeline; a phone shows every second

Ticks = list[tuple[str, float]]  # of an axis: text, place from 0 to 1


# --- a window -----------------------------------------------------------------------------------


def find_ticks(shape: tuple[int, int], sound: dict | None) -> tuple[Ticks, Ticks]:
    """Where seconds and Hz stand along a clip (M, T), if the weights know."""
    if not sound:
        return [("frames", 0.5)], [("mel bins", 0.5)]
    from librosa import hz_to_mel  # slow: demo.py imports it while the first page is looked at

    bins, frames = shape
    rate, top = sound["sample_rate"] / sound["hop_length"], sound["sample_rate"] / 2
    seconds = range(0, int(frames / rate) + 1, max(round(frames / rate / 4), 1))
    octaves = [hertz for hertz in OCTAVES if hertz <= top]
    # Of bins + 2 points, even in mel from 0 to `top`, those within are the centres of the bins.
    places = (hz_to_mel(octaves) / hz_to_mel(top) * (bins + 1) - 0.5) / bins
    y = [(f"{hertz} Hz", min(place, 1)) for hertz, place in zip(octaves, places, strict=True)]
    return [(f"{n} s", n * rate / frames) for n in seconds], y


def add_axes(content: str, x: Ticks, y: Ticks, caption: str) -> str:
    """A picture with axes, in HTML: their text keeps its size on a phone."""
    below = "".join(f'<span style="left:{place:.1%}">{text}</span>' for text, place in x)
    left = "".join(f'<span style="bottom:{place:.1%}">{text}</span>' for text, place in y)
    return (
        f'<figure class="plot"><div class="y">{left}</div>{content}'
        f'<div class="x">{below}</div><figcaption>{caption}</figcaption></figure>'
    )


def paint(clip: np.ndarray, moved: np.ndarray | None) -> str:
    """A clip (M, T) as the address of a PNG; in grey below what moved the verdict, if given."""
    image = Image.fromarray(np.uint8(255 * clip[::-1]))
    if moved is None:
        image = ImageOps.colorize(image, black="#0b0724", mid="#b5367a", white="#fcfdbf")
    else:
        strength = moved[::-1] / max(np.abs(moved).max(), LEAST_SHOWN)
        for colour, part in ((ORANGE, strength), (BLUE, -strength)):
            mask = Image.fromarray(np.uint8(220 * part.clip(0)))
            mask = mask.resize(image.size, Image.Resampling.BILINEAR)
            over = Image.new("RGB", image.size, colour)
            image = Image.composite(over, image.convert("RGB"), mask)
    image.save(file := io.BytesIO(), "png")
    return embed(file.getvalue())


def embed(png: bytes) -> str:
    """An address that holds the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def draw_clip(
    name: str, clip: np.ndarray, ticks: tuple[Ticks, Ticks], moved: np.ndarray | None
) -> str:
    text = f"Mel spectrogram of {escape(name)}; brighter is louder."
    if moved is not None:
        text += f" Orange moved the verdict towards {CLASS_NAMES[1]}, blue away from it, by up to "
        text += f"{100 * np.abs(moved).max():.1f} percentage points."
    image = f'<img src="{paint(clip, moved)}" alt="{text}">'
    return add_axes(image, *ticks, text)


# --- all windows --------------------------------------------------------------------------------


class Session(NamedTuple):
    """A result on the page; of the sound itself nothing is kept."""

    paths: list[Path]
    model: str
    clips: list[Row]
    places: list[tuple[int, float]]  # of each clip: which path, and where it starts, in seconds
    csv: str = ""  # its path


def is_clip(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def format_minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def draw_bar(number: int, row: Row, file: str, at: float, gap: bool) -> str:
    """A window's button: up from 0.5 towards Depressed, or down towards Not Depressed."""
    low, high = sorted((0.5, row.probability))
    tone = CLASSES.get(row.verdict, "none")
    place = f"{format_minutes(at)}, " if file else ""
    text = f"{place}{escape(row.clip)}: {row.verdict}"
    text += f", score {format_number(row.probability)}" if row.verdict in CLASSES else ""
    return (
        f'<button type="button" class="{tone}{" gap" if gap else ""}" data-n="{number}" '
        f'data-file="{file}" data-at="{at:g}" aria-pressed="false" tabindex="{-bool(number)}" '
        f'aria-label="{text}" title="{text}"><i style="bottom:{low:.1%};'
        f'height:{high - low:.1%}"></i></button>'
    )


def starts_gap(clips: list[Row], i: int) -> bool:
    """Whether another person's clips begin there."""
    return 0 < i < len(clips) and clips[i].participant != clips[i - 1].participant


def draw_ticks(session: Session) -> str:
    """Seconds of one recording, otherwise names, each as wide as the bars up to the next one.

    A phone shows every second, and gives it the next one's room.
    """
    clips, one = session.clips, len({file for file, _ in session.places}) == 1
    step, ticks = -(-len(clips) // MOST_TICKS), ""
    for i in range(0, len(clips), step):
        text = format_minutes(session.places[i][1]) if one else escape(clips[i].clip)
        room = []
        for end in (min(i + step, len(clips)), min(i + 2 * step, len(clips))):
            room += [end - i, sum(starts_gap(clips, bar + 1) for bar in range(i, end))]
        style = "--bars:{};--gaps:{};--phone-bars:{};--phone-gaps:{}".format(*room)
        spare = "spare" if i // step % 2 else ""
        ticks += f'<span class="{spare}" style="{style}" title="{text}">{text}</span>'
    return ticks


def draw_timeline(session: Session, seconds: float) -> str:
    """Buttons, one per window; each plays from there and shows its spectrogram."""
    sounds = {i: str(p) for i, p in enumerate(session.paths) if not is_clip(p)}
    sounds = {file: sounds[file] for file, _ in session.places if file in sounds}
    if not session.clips or (len(session.clips) < 2 and not sounds):
        return ""
    bars = []
    for i, (row, (file, at)) in enumerate(zip(session.clips, session.places, strict=True)):
        name = str(file) if file in sounds else ""
        bars.append(draw_bar(i, row, name, at, starts_gap(session.clips, i)))
    run = escape(session.csv)  # of equal results too the script must see that there is a new one
    seen = "a window to hear it and see its spectrogram" if sounds else "a clip to see it"
    player = (
        f'<audio controls preload="metadata" data-seconds="{seconds:g}" '
        f'data-paths="{escape(json.dumps(sounds))}" aria-label="The recording"></audio>'
        '<p class="unplayable hint" hidden>Your browser cannot play this kind of file.</p>'
        f'<p class="gone hint" hidden>{SWEPT[0].upper()}{SWEPT[1:]}.</p>'
    )
    return (
        f'<section class="timeline" data-run="{run}"><h3>Clip by clip</h3><p class="hint">Click '
        f"{seen} (arrow keys move). Up, orange: more like {CLASS_NAMES[1]}; down, blue: more like "
        f"{CLASS_NAMES[0]}; grey: uncertain; dashed: no verdict.</p>{player if sounds else ''}"
        '<div class="strip"><div class="inner"><div class="bars" role="group" aria-label="Windows">'
        f'{"".join(bars)}</div><div class="head"></div><div class="ticks">{draw_ticks(session)}'
        "</div></div></div></section>"
    )
