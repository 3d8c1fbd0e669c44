"""Serves the page: spectrograms or a recording in, a verdict out.

    python demo.py --no-share

Shapes: M mel bins, T frames.
"""

import argparse
import base64
import contextlib
import csv
import gc
import io
import json
import os
import re
import signal
import socket
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import date
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple

from speech import server

# PyTorch reads it while it is imported: large tensors in huge pages, which the system clears
# faster, and which go back to it at once, as with reuse_freed_memory they would not.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Gradio reads these while it is imported: no analytics, uploads where they can be swept away, and
# no launch() that waits for Ctrl-C by itself.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.pop("GRADIO_DEBUG", None)
os.environ["GRADIO_TEMP_DIR"] = str((UPLOADS := server.open_folder()).path)
if not os.access(Path.home(), os.W_OK):  # a container's user without a home: caches go with us
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        os.environ.setdefault(name, str(UPLOADS.path / ".cache"))

import gradio as gr
import httpx
import numpy as np
from PIL import Image, ImageOps

import predict
from speech import words
from speech.audio import SETTINGS, log_mel, open_sound, read_sound
from speech.cli import InputError, Parser, at_least, run
from speech.dataset import min_max, read_labels, read_spectrogram
from speech.device import set_malloc
from speech.familiarity import fill
from speech.report import CLASS_NAMES, THRESHOLD, format_scores
from speech.server import KEEP_SECONDS, MAX_UPLOAD_BYTES

FOLDER = Path(__file__).parent
EXAMPLES = FOLDER / "examples"
MAX_FILES = 256  # at once
POLL_SECONDS = 0.25  # between two looks at the work: short ones end without showing progress
LEAST_SHOWN = 0.02  # a patch that moves a probability by less is painted fainter
OCTAVES = (250, 500, 1000, 2000, 4000, 8000, 16_000)  # Hz

Source = str | list[str] | None  # what a visitor chose: a recording, clips, or nothing
Choices = dict[str, predict.Models]  # by the names that the page offers
Ticks = list[tuple[str, float]]  # of an axis: text, place from 0 to 1

TITLE = "Depression detection from speech"
KINDS = "Clips (.npy) or recordings (WAV, FLAC, MP3, M4A, OGG, WebM and others)"
SMALLER = "save recordings as FLAC or MP3, or at 16 kHz mono"
SWEPT = f"deleted after {KEEP_SECONDS // 60} minutes: choose it again"
PRIVACY = f"Used for the answer alone; deleted here after {KEEP_SECONDS // 60} minutes."
RELAY = "Through a gradio.live link files pass Gradio's relay."
LIMITS = f"{KINDS}; at most {MAX_FILES} files and {MAX_UPLOAD_BYTES >> 20} MB at once. "
LIMITS += "One voice only: `prepare.py` cuts an interviewer out."
EXAMPLE_INPUTS = {  # made by synthetic.py, so their labels are known
    "Synthetic voice, label 1": ["S017_clip_0.wav"],
    "Synthetic voice, label 0": ["S014_clip_0.wav"],
    "Four voices (.npy)": [f"S{n:03}_clip_0.npy" for n in (4, 14, 17, 20)],
}

BLUE, ORANGE = "#3b82f6", "#ea580c"  # of the overlay; told apart by colour-blind eyes too
CLASSES = dict(zip((*CLASS_NAMES, "uncertain"), ("not", "yes", "unsure"), strict=True))  # CSS's
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **FONTS).set(
    button_primary_background_fill="*primary_600",  # contrasts of 4.5:1 and more
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    color_accent="*primary_600",
    link_text_color_dark="*secondary_400",
)
CSS = FOLDER / "speech" / "page.css"
TIMELINE_JS = (FOLDER / "speech" / "page.js").read_text(encoding="utf-8")
# On a phone the card lies below what was clicked: show it when it says something new.
SCROLL_JS = """watch("value", () => {
  const card = document.getElementById("card"), changed = element.querySelector("[data-show]");
  const top = card.getBoundingClientRect().top;
  const far = changed && (top < 0 || top > innerHeight * 0.3);
  if (far) setTimeout(() => card.scrollIntoView(), 150); // once the page has its new length
});"""
MICROPHONE_JS = """(async () => {
  const devices = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
  const found = devices.some((device) => device.kind === "audioinput");
  element.querySelector("p").hidden = found;
})();"""
NO_MICROPHONE = "No microphone is found, or this address may not use one (it takes https or "
NO_MICROPHONE += "localhost): record elsewhere and choose the file under Files."


# --- prediction ---------------------------------------------------------------------------------


class Stopped(Exception):
    """The visitor does not wait any more."""


class Work:
    """What a visitor waits for: how far it is, and whether they still do."""

    def __init__(
        self, clips: int, seconds: float | None, has_gone: Callable[[], bool] = lambda: False
    ):
        self.clips, self.seconds = clips, seconds  # in all; of a clip, None: there is no sound
        self.read = self.predicted = 0
        self.stopped, self.has_gone = threading.Event(), has_gone
        self.turn = server.TURNS.join()  # a long job lets short ones on

    def tick(self, clips: int = 0) -> None:
        if self.stopped.is_set() or self.has_gone():
            raise Stopped
        self.turn.rest()
        self.read += clips

    def progress(self) -> tuple[float, str]:
        """The share that is done, and in words; reading and predicting count half each."""
        clips = max(self.clips, self.read)
        done = (self.read + self.predicted) / 2
        if self.seconds is None:
            return done / clips, f"{int(done)} of {clips} clips"
        minutes = self.seconds / 60
        if not self.read:
            return 0.0, f"Reading {clips * minutes:.1f} minutes"
        return done / clips, f"{done * minutes:.1f} of {clips * minutes:.1f} minutes"


class Session(NamedTuple):
    """A result on the page; of the sound itself nothing is kept."""

    paths: list[Path]
    model: str
    clips: list[predict.Row]
    places: list[tuple[int, float]]  # of each clip: which path, and where it starts, in seconds


def name_choices(paths: list[Path], models: predict.Models) -> Choices:
    """The ensemble, where there are several, and each file by its name, or path if that repeats."""
    ensemble = "Both" if len(paths) == 2 else f"All {len(paths)}"
    choices = {ensemble: models} if len(paths) > 1 else {}
    names = Counter([ensemble, *(path.stem for path in paths)])
    for path, model in zip(paths, models, strict=True):
        choices[path.stem if names[path.stem] == 1 else str(path)] = [model]
    return choices


def list_paths(source: Source) -> list[Path]:
    return [Path(path) for path in ([source] if isinstance(source, str) else source or [])]


def check_upload(source: Source) -> list[Path]:
    """The files that one visitor chose; the amount is bounded, for others wait."""
    paths = list_paths(source)
    if not paths:
        raise InputError("Choose a file first, or click an example.")
    if gone := [path.name for path in paths if not path.exists()]:
        raise InputError(f"{gone[0]}: {SWEPT}")
    size = sum(path.stat().st_size for path in paths)
    if len(paths) > MAX_FILES or size > MAX_UPLOAD_BYTES:
        limit = f"at most {MAX_FILES} files and {MAX_UPLOAD_BYTES >> 20} MB at once"
        raise InputError(f"{len(paths)} files, {size >> 20} MB; {limit}: {SMALLER}")
    server.check_sources(paths)
    return paths


def is_clip(path: Path) -> bool:
    return path.suffix.lower() == ".npy"


def plan_work(paths: list[Path], metadata: dict) -> Work:
    """How many clips there will be, by the headers."""
    length = (metadata["preprocessing"]["sound"] or SETTINGS)["clip_seconds"]
    clips = 0
    for path in paths:
        clips += 1
        if not is_clip(path):
            with contextlib.suppress(InputError), open_sound(path) as file:
                clips += max(-(-file.frames // (length * file.samplerate)) - 1, 0)
    return Work(clips, None if all(map(is_clip, paths)) else length)


def find_start(name: str, path: Path) -> float:
    """Where a clip starts within its file, in seconds: predict.py's names say it."""
    stem = path.stem.encode(errors="backslashreplace").decode()
    return 0.0 if name == stem else float(name.rpartition("_clip_")[2])


def classify(models: predict.Models, paths: list[Path], work: Work) -> tuple[list, list]:
    """predict.py's rows, and of each clip which path it is from and where it starts."""
    places, metadata = [], models[0][1]

    def read() -> Iterator[predict.Window]:
        for number, path in enumerate(paths):
            for window in predict.read_windows([path], metadata, work.tick):
                places.append((number, find_start(window[0], path)))
                yield window

    rows = []
    with work.turn:
        for row in predict.predict_windows(models, read()):
            rows.append(row)
            work.tick()
            work.predicted += bool(row.clip)
    return rows, places


def read_window(path: Path, start: float, metadata: dict) -> np.ndarray:
    """One clip (M, T) of a file, and nothing else of it; InputError if it is gone or silent."""
    sound = metadata["preprocessing"]["sound"] or SETTINGS
    rate, seconds, frames = sound["sample_rate"], sound["clip_seconds"], metadata["shape"][1]
    if not path.exists():
        raise InputError(f"{path.name}: {SWEPT}")
    if is_clip(path):
        first = round(start * rate / sound["hop_length"])
        return min_max(fill(read_spectrogram(path)[:, first : first + frames], frames))
    samples = np.concatenate(list(read_sound(path, rate, start, start + seconds)))
    return log_mel(fill(samples[: seconds * rate], seconds * rate), sound)


def answer(choices: Choices, source: Source, model: str) -> dict:
    """Classifies clips (.npy) or recordings.

    Returns {"notice": str, "rows": [{"clip", "participant", "probability", "verdict", "note"}]}:
    a row per clip, then one per person, whose "clip" is empty. Probability is that of Depressed,
    0 to 1, null where a file cannot be read; verdict is "Depressed", "Not Depressed", "uncertain",
    "no verdict" or "error", and note says why.
    """
    try:
        paths, models = check_upload(source), choices[model]
        rows, _ = classify(models, paths, Work(len(paths), None, server.watch_caller()))
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Stopped:  # whoever asked has hung up
        return {}
    return {"notice": predict.notice(choices[model]), "rows": [row._asdict() for row in rows]}


def write_csv(rows: list[predict.Row], session: Session, notice: str) -> str:
    """predict.py's columns, and what tells the table from another; named after its input."""
    first, more = session.paths[0].stem, len(session.paths) - 1
    name = re.sub(r"[^\w.-]", "_", first)[:80] + (f"_and_{more}_more" if more else "")
    path = Path(tempfile.mkdtemp(dir=UPLOADS.ensure()), f"{name}_predictions.csv")
    starts = iter(f"{start:g}" for _, start in session.places)
    facts = (session.model, date.today().isoformat(), THRESHOLD, notice)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*predict.Row._fields, "seconds", "model", "date", "threshold", "notice"))
        for row in rows:
            cells = (*row, next(starts) if row.clip else "", *facts)
            formula = (
                "=",
                "+",
                "-",
                "@",
            )  # a spreadsheet would compute it: the quote makes it text
            writer.writerow(f"'{c}" if str(c).startswith(formula) else c for c in cells)
    return str(path)


# --- pictures -----------------------------------------------------------------------------------


def add_axes(content: str, x: Ticks, y: Ticks, caption: str) -> str:
    """A picture with axes, in HTML: their text keeps its size on a phone."""
    below = "".join(f'<span style="left:{place:.1%}">{text}</span>' for text, place in x)
    left = "".join(f'<span style="bottom:{place:.1%}">{text}</span>' for text, place in y)
    return (
        f'<figure class="plot"><div class="y">{left}</div>{content}'
        f'<div class="x">{below}</div><figcaption>{caption}</figcaption></figure>'
    )


def find_ticks(shape: tuple[int, int], sound: dict | None) -> tuple[Ticks, Ticks]:
    """Where seconds and Hz stand along a clip (M, T), if the weights know."""
    if not sound:
        return [("frames", 0.5)], [("mel bins", 0.5)]
    from librosa import hz_to_mel  # slow: sweep_until_stopped imports it, after the first page

    bins, frames = shape
    rate, top = sound["sample_rate"] / sound["hop_length"], sound["sample_rate"] / 2
    seconds = range(0, int(frames / rate) + 1, max(round(frames / rate / 4), 1))
    octaves = [hertz for hertz in OCTAVES if hertz <= top]
    # Of bins + 2 points, even in mel from 0 to `top`, those within are the centres of the bins.
    places = (hz_to_mel(octaves) / hz_to_mel(top) * (bins + 1) - 0.5) / bins
    y = [(f"{hertz} Hz", min(place, 1)) for hertz, place in zip(octaves, places, strict=True)]
    return [(f"{n} s", n * rate / frames) for n in seconds], y


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
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_clip(name: str, clip: np.ndarray, sound: dict | None, moved: np.ndarray | None) -> str:
    text = f"Mel spectrogram of {escape(name)}; brighter is louder."
    if moved is not None:
        text += f" Orange moved the verdict towards {CLASS_NAMES[1]}, blue away from it, by up to "
        text += f"{100 * np.abs(moved).max():.1f} percentage points."
    image = f'<img src="{paint(clip, moved)}" alt="{text}">'
    return add_axes(image, *find_ticks(clip.shape, sound), text)


def format_minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def format_number(p: float) -> str:
    """A score as text: never as certain as 0 or 1."""
    text = f"{min(max(p, predict.SURE), 1 - predict.SURE):.2f}"
    return {-1: f"under {text}", 0: text, 1: f"over {text}"}[
        (p > 1 - predict.SURE) - (p < predict.SURE)
    ]


def draw_bar(number: int, row: predict.Row, file: str, at: float, gap: bool) -> str:
    """A window's button: up from 0.5 towards Depressed, or down towards Not Depressed."""
    low, high = sorted((0.5, row.probability))
    tone = CLASSES.get(row.verdict, "none")
    place = f"{format_minutes(at)}, " if file else ""
    text = f"{place}{escape(row.clip)}: {row.verdict}, score {format_number(row.probability)}"
    return (
        f'<button type="button" class="{tone}{" gap" if gap else ""}" data-n="{number}" '
        f'data-file="{file}" data-at="{at:g}" aria-pressed="false" tabindex="{-bool(number)}" '
        f'aria-label="{text}" title="{text}"><i style="bottom:{low:.1%};'
        f'height:{high - low:.1%}"></i></button>'
    )


def draw_ticks(session: Session) -> str:
    """At most eight, of which a phone shows four; seconds of one recording, otherwise names."""
    n, one = len(session.clips), len({file for file, _ in session.places}) == 1
    chosen = range(0, n, -(-n // 8))
    texts = [
        format_minutes(session.places[i][1]) if one else escape(session.clips[i].clip)
        for i in chosen
    ]
    return "".join(
        f'<span class="{"spare" if place % 2 else ""}" style="left:{i / n:.1%}">{text}</span>'
        for place, (i, text) in enumerate(zip(chosen, texts, strict=True))
    )


def draw_timeline(session: Session, seconds: float) -> str:
    """Buttons, one per window; each plays from there and shows its spectrogram."""
    sounds = {i: str(p) for i, p in enumerate(session.paths) if not is_clip(p)}
    sounds = {file: sounds[file] for file, _ in session.places if file in sounds}
    if not session.clips or (len(session.clips) < 2 and not sounds):
        return ""
    bars, before = [], session.clips[0].participant
    for i, (row, (file, at)) in enumerate(zip(session.clips, session.places, strict=True)):
        name = str(file) if file in sounds else ""
        bars.append(draw_bar(i, row, name, at, row.participant != before))
        before = row.participant
    what = (
        "Click a window to hear it and see its spectrogram" if sounds else "Click a clip to see it"
    )
    player = (
        f'<audio controls preload="metadata" data-seconds="{seconds:g}" '
        f'data-paths="{escape(json.dumps(sounds))}" aria-label="The recording"></audio>'
        '<p class="unplayable hint" hidden>Your browser cannot play this kind of file.</p>'
    )
    return (
        f'<section class="timeline"><h3>Clip by clip</h3><p class="hint">{what} (arrow keys move). '
        f"Up, orange: more like {CLASS_NAMES[1]}; down, blue: more like {CLASS_NAMES[0]}; grey: "
        f'uncertain; dashed: no verdict.</p>{player if sounds else ""}<div class="strip">'
        f'<div class="inner"><div class="bars" role="group" aria-label="Windows">{"".join(bars)}'
        f'</div><div class="head"></div><div class="ticks">{draw_ticks(session)}</div></div></div>'
        "</section>"
    )


def draw_scale(row: predict.Row) -> str:
    low, high = predict.UNCERTAIN
    score = format_number(row.probability)
    place = min(max(row.probability, 0.03), 0.97)  # the marker stays on the track
    text = f"Score {score}, from 0 ({CLASS_NAMES[0]}) to 1 ({CLASS_NAMES[1]}); "
    text += f"{low} to {high} is uncertain"
    return (
        f'<div class="scale" role="img" aria-label="{text}"><div class="track">'
        f'<div class="band"></div><div class="marker {CLASSES[row.verdict]}" '
        f'style="left:{place:.1%}"></div></div><div class="ends"><span>0 {CLASS_NAMES[0]}</span>'
        f"<span>uncertain</span><span>{CLASS_NAMES[1]} 1</span></div></div>"
    )


# --- the verdict in words -----------------------------------------------------------------------


def heading(word: str, tone: str = "") -> str:
    """The card's heading, in the visitor's language where it is a verdict's word."""
    known = word in words.KEYS
    text = str(gr.I18n()(words.find_key(word))) if known else escape(word)
    return f'<h2 class="{tone or "quiet"}" data-show>{text}</h2>'


def describe_worth(models: predict.Models) -> str:
    """One sentence: how often the model was right about people it had not heard."""
    facts = []
    for _, metadata in models:
        accuracy = metadata["test"]["participants"].get("accuracy")  # None: converted weights
        n = metadata["data"]["participants"].get("test", 0)
        if accuracy and accuracy["value"] is not None:
            interval = f"[{accuracy['low']:.2f}, {accuracy['high']:.2f}]"
            facts.append(f"about {accuracy['value'] * n:.0f} of {n} people {interval}")
    if not facts:
        return "Nobody has tested this model on people it had not heard."
    whose = "this model was" if len(models) == 1 else "these models, one by one, were"
    return f"In its test {whose} right {'; '.join(facts)}."


def describe_score(row: predict.Row) -> str:
    score = format_number(row.probability)
    if row.verdict == "uncertain":
        return f"Score {score}: between the clips labelled {' and '.join(CLASS_NAMES)}."
    return f"Score {score}: more like the clips labelled {row.verdict}."


def list_unread(clips: list[predict.Row], files: int) -> str:
    bad = [row for row in clips if row.verdict == "error"]
    if not bad:
        return ""
    shown = "".join(f"<li>{escape(row.clip)}: {escape(row.note)}</li>" for row in bad[:10])
    more = f"<li>and {len(bad) - 10} more</li>" if len(bad) > 10 else ""
    return f"<p><b>{len(bad)} of {files} files could not be read</b></p><ul>{shown}{more}</ul>"


def list_people(people: list[predict.Row], clips: list[predict.Row]) -> str:
    counts = Counter(row.participant for row in clips if row.verdict != "error")
    rows = "".join(
        f'<tr><td>{escape(p.participant)}</td><td class="number">'
        f"{format_number(p.probability) if p.verdict in CLASSES else '–'}</td>"
        f'<td class="word {CLASSES.get(p.verdict, "none")}">{p.verdict}</td>'
        f'<td class="number">{counts[p.participant]}</td></tr>'
        for p in people
    )
    heads = (
        '<th>Person</th><th class="number">Score</th><th>Verdict</th><th class="number">Clips</th>'
    )
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="people" tabindex="0" role="region" aria-label="People">{table}</div>'


def explain_refusal(row: predict.Row, clips: list[predict.Row]) -> str:
    """Why one person has no verdict: their clips' most frequent reason."""
    notes = Counter(clip.note for clip in clips if clip.verdict == predict.NO_VERDICT and clip.note)
    reason = notes.most_common(1)[0][0] if notes else row.note
    return f'<p class="plain">No verdict: {escape(reason)}.</p><p>{escape(row.note)}.</p>'


def format_result(models: predict.Models, rows: list[predict.Row], files: int) -> tuple[str, str]:
    """The card: its heading, and what follows."""
    people, clips = [row for row in rows if not row.clip], [row for row in rows if row.clip]
    unread = list_unread(clips, files)
    synthetic = any(metadata["data"]["synthetic"] for _, metadata in models)
    warning = f'<p class="warning">{predict.SYNTHETIC_NOTICE}</p>' if synthetic else ""
    worth = f'<p class="worth">{describe_worth(models)}</p>'
    if not people:
        return heading(predict.NO_VERDICT, "none"), f"<p>Nothing could be read.</p>{unread}"
    if len(people) > 1:
        counts = Counter(person.verdict for person in people).most_common()
        title = f"{len(people)} people: " + ", ".join(f"{n} {word}" for word, n in counts)
        return heading(title), f"{warning}{unread}{list_people(people, clips)}{worth}"
    [row] = people
    if row.verdict == predict.NO_VERDICT:
        return heading(row.verdict, "none"), warning + unread + explain_refusal(row, clips)
    n = sum(clip.verdict != "error" for clip in clips)
    whose = f"{escape(row.participant)}, {'one clip' if n == 1 else row.note + ' clips'}"
    sentence = f'{describe_score(row)} <span class="hint">({whose})</span>'
    body = f'{draw_scale(row)}<p class="plain">{sentence}</p>'
    return heading(row.verdict, CLASSES[row.verdict]), warning + unread + body + worth


def describe_notes(clips: list[predict.Row]) -> str:
    """Notes that all clips share, said once."""
    notes = {row.note for row in clips}
    return f"All clips: {notes.pop()}." if len(notes) == 1 and clips[0].note else ""


# --- what the page does -------------------------------------------------------------------------

EMPTY = (
    heading("Your result appears here").replace(" data-show", ""),
    "<p>Try an example: one click. Or choose a file, or record yourself, then Classify.</p>",
)
STALE = (
    heading("Classify again").replace(" data-show", ""),
    "<p>What you chose has changed since the last result.</p>",
)
STOPPED = heading("Stopped"), "<p>The work has ended; nothing of it was kept.</p>"


def show(card: tuple[str, str], working: bool = False) -> tuple:
    """A state of the page without a result."""
    hidden = gr.update(visible=False)
    return (*card, gr.update(visible=working), hidden, *(gr.skip() for _ in range(7)))


def draw_progress(work: Work) -> tuple[str, str]:
    share, text = work.progress()
    bar = '<div class="progress" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
    bar += f'aria-valuenow="{100 * share:.0f}" aria-label="Classifying">'
    return heading("Working"), f'<p>{text}</p>{bar}<div style="width:{share:.0%}"></div></div>'


def score_labels(rows: list[predict.Row], labels: str | None, models: predict.Models) -> str:
    """report.py's table, where a file of labels was chosen."""
    if not labels:
        return ""
    try:
        frame, notes = read_labels(labels)
        text = predict.score_against_labels(rows, frame, models, Path(Path(labels).name))
        text = "\n".join([text, *notes])
    except InputError as error:
        text = str(error).replace(labels, Path(labels).name)
    return f'<h3>Against your labels</h3><pre tabindex="0">{escape(text)}</pre>'


def show_result(
    choices: Choices, model: str, paths: list[Path], labels: str | None, answer: tuple
) -> tuple:
    rows, places = answer
    models = choices[model]
    clips = [row for row in rows if row.clip]
    good = [i for i, row in enumerate(clips) if row.verdict != "error"]
    session = Session(paths, model, [clips[i] for i in good], [places[i] for i in good])
    seconds = (models[0][1]["preprocessing"]["sound"] or SETTINGS)["clip_seconds"]
    times, common = draw_timeline(session, seconds), describe_notes(session.clips)
    table = [
        (row.clip, min(max(round(row.probability, 2), predict.SURE), 1 - predict.SURE), row.verdict)
        if common or not row.note
        else (
            row.clip,
            round(min(max(row.probability, predict.SURE), 1 - predict.SURE), 2),
            f"{row.verdict}: {row.note}",
        )
        for row in session.clips
    ]
    every = Session(paths, model, clips, places)
    scores = score_labels(rows, labels, models)
    return (
        *format_result(models, rows, len(paths)),
        gr.update(visible=False),
        gr.update(visible=True),
        gr.update(value=scores, visible=bool(scores)),
        gr.update(value=times, visible=bool(times)),
        gr.update(value=f"<p class=hint>{escape(common)}</p>", visible=bool(common)),
        gr.update(value=table, visible=len(table) > 1),
        write_csv(rows, every, predict.notice(models)),
        session,
        0 if good else None,
    )


def run_work(choices: Choices, source: Source, labels: str | None, model: str) -> Iterator[tuple]:
    """Yields the page's states: working, then a result or an error. Closed, it ends the work."""
    work = None
    try:
        paths, models = check_upload(source), choices[model]
        work = plan_work(paths, models[0][1])
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(classify, models, paths, work)
            try:
                while not wait([future], POLL_SECONDS).done:
                    yield show(draw_progress(work), working=True)
            finally:  # Stop, or a closed tab, closes this generator
                work.stopped.set()
        yield show_result(choices, model, paths, labels, future.result())
    except InputError as error:
        yield show((heading("That did not work"), f"<p>{escape(str(error))}</p>"))
    except Exception:  # a visitor never reads a bare "Error"; the reason is on stderr
        traceback.print_exc()
        text = "<p>Something failed on the server; it has been noted there. Try again.</p>"
        yield show((heading("That did not work"), text))


def show_lost() -> tuple:
    """Gradio refused what was chosen before we saw it: it is not there any more."""
    return show((heading("That did not work"), f"<p>This file was {SWEPT}.</p>"))


def show_clip(
    choices: Choices, session: Session | None, number: int | None, explained: bool
) -> str:
    """Reads one clip again: nobody's sound is kept in memory."""
    if session is None or number is None or not 0 <= number < len(session.clips):
        return ""
    models, (file, start) = choices[session.model], session.places[number]
    try:
        clip = read_window(session.paths[file], start, models[0][1])
    except InputError as error:
        return f"<p>{escape(str(error))}</p>"
    with server.TURNS.join():
        moved = predict.explain(models, clip) if explained else None
    sound = models[0][1]["preprocessing"]["sound"]
    return draw_clip(session.clips[number].clip, clip, sound, moved)


def choose_bar(event: gr.EventData) -> int:
    return event.index


def choose_row(session: Session, event: gr.SelectData) -> int | None:
    """Which clip a row of the table is, however it is sorted."""
    names = [row.clip for row in session.clips] if session else []
    return names.index(event.row_value[0]) if event.row_value[0] in names else None


def count_files(files: Source) -> str:
    """`200 files, 12 people`; files over the limits say so at once."""
    paths = list_paths(files)
    if not paths:
        return ""
    people = len({path.stem.split("_clip_")[0] for path in paths})
    text = f"{len(paths)} file{'s' * (len(paths) > 1)}, "
    return text + ("1 person" if people == 1 else f"{people} people")


# --- page ---------------------------------------------------------------------------------------


BRIEFLY = 3  # rows of the scores that are shown unfolded: accuracy, the majority's, balanced


def describe_weights(name: str, metadata: dict) -> tuple[str, str]:
    """What a weights file says of itself, in Markdown: a sentence and three rows; all the rest."""
    data, test = metadata["data"], metadata["test"]
    sides = [f"{side} {n} ({data['participants'][side]})" for side, n in data["clips"].items()]
    versions = " ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    text = f"### {escape(name)}\nIt learnt from {data['corpus'] or 'a corpus that is not named'}. "
    text += f"{describe_worth([(None, metadata)])}\n"
    heads = ["| Test score [95% interval] | clips | people |", "|---|---|---|"]
    rows = [
        f"| {title} | {' | '.join(row)} |"
        for title, row in format_scores(test["clips"], test["participants"])
    ]
    more = f"Split by {data['split']}; clips (people): {', '.join(sides)}. Trained with {versions}."
    brief = "\n".join([text, *heads, *rows[:BRIEFLY]])
    return brief, "\n".join([*heads, *rows[BRIEFLY:], "", more])


USE = """Meant for research on voices, and for seeing what such models can and cannot do. Not for
decisions about anybody: not at work, in school, in insurance, in medicine. It hears 8 seconds at a
time, in the language, the recording quality and the kind of people it was trained on; elsewhere it
is worth less, or nothing. Whoever serves it to others must tell them what it is: guessing emotions
at work or in education is forbidden in the EU (AI Act, Art. 5), and elsewhere people must be told
(Art. 50)."""


def build_examples() -> list[tuple[gr.Button, list[str]]]:
    gr.HTML('<p class="hint">Try one (made by a computer; label 1 stands for Depressed):</p>')
    with gr.Row():
        return [
            (gr.Button(name, size="sm", min_width=120), [str(EXAMPLES / file) for file in files])
            for name, files in EXAMPLE_INPUTS.items()
            if all((EXAMPLES / file).exists() for file in files)
        ]


def build_inputs(names: list[str], shared: bool) -> dict:
    """The left column."""
    examples = build_examples()
    with gr.Tabs():
        with gr.Tab("Files"):
            counted = gr.HTML(elem_id="count")
            files = gr.File(
                label="Clips or recordings", file_count="multiple", height=170, elem_id="files"
            )
            gr.Markdown(LIMITS, elem_classes="hint")
            with gr.Accordion("I have labels (dataset.csv)", open=False, elem_id="labelled"):
                labels = gr.File(label="dataset.csv: id,label", height=110, elem_id="labels")
            classify = gr.Button(
                "Classify", variant="primary", interactive=False, elem_id="classify"
            )
        with gr.Tab("Microphone"):
            gr.HTML(f'<p class="hint" hidden>{NO_MICROPHONE}</p>', js_on_load=MICROPHONE_JS)
            look = {"waveform_options": {"show_recording_waveform": False}, "buttons": []}
            sound = gr.Audio(
                label="Recording",
                type="filepath",
                sources=["microphone"],
                elem_id="recording",
                **look,
            )
            gr.Markdown("One voice, 8 seconds or more, in a quiet room.", elem_classes="hint")
            listen = gr.Button("Classify", variant="primary", interactive=False, elem_id="listen")
    several = len(names) > 1
    model = gr.Radio(names, value=names[0], label="Model", elem_id="model", visible=several)
    gr.HTML(f'<p class="hint">{f"{PRIVACY} {RELAY}" if shared else PRIVACY}</p>')
    parts = dict(examples=examples, counted=counted, files=files, labels=labels, model=model)
    return parts | dict(classify=classify, sound=sound, listen=listen)


def build_card() -> tuple:
    word, text = EMPTY
    with gr.Column(elem_id="card"):
        verdict = gr.HTML(word, elem_id="verdict", js_on_load=SCROLL_JS)
        facts = gr.HTML(text, elem_id="facts")
        stop = gr.Button("Stop", visible=False, elem_id="stop")
        translate = gr.I18n()
        with gr.Column(elem_id="notice"):
            gr.Markdown(translate(words.find_key("notice")), elem_id="diagnosis")
            gr.Markdown(translate(words.find_key("help")))
    return verdict, facts, stop


def build_results() -> tuple:
    with gr.Column(visible=False, elem_id="results") as results:
        scores = gr.HTML(elem_id="scores", visible=False)
        times = gr.HTML(elem_id="timeline", js_on_load=TIMELINE_JS)
        picture = gr.HTML(elem_id="picture")
        explained = gr.Checkbox(label="Show what moved the verdict", elem_id="explain")
        common = gr.HTML(visible=False)
        table = gr.Dataframe(
            headers=["Clip", "Score", "Verdict"],
            datatype=["str", "number", "str"],
            column_widths=["42%", "20%", "38%"],
            wrap=True,
            interactive=False,
            elem_id="table",
            buttons=[],
        )
        download = gr.DownloadButton("Download as CSV", size="sm", elem_id="csv")
    return results, scores, times, common, table, download, picture, explained


def build_about(choices: Choices) -> None:
    with gr.Accordion("About this model", open=False, elem_id="about"):
        gr.Markdown(USE)
        for name, [(_, metadata), *others] in choices.items():
            if not others:
                brief, rest = describe_weights(name, metadata)
                gr.Markdown(brief)
                with gr.Accordion(f"More about {name}", open=False):
                    gr.Markdown(rest)


def connect_inputs(parts: dict, outputs: list, running: list) -> None:
    """Any change hides the result and ends the work; a button works when there is something."""
    inner = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    files, sound, classify, listen = (parts[n] for n in ("files", "sound", "classify", "listen"))

    def change(chosen: Source) -> tuple:
        return (
            *show(STALE if chosen else EMPTY),
            count_files(chosen),
            gr.update(interactive=bool(chosen)),
        )

    for event in (files.upload, files.delete, files.clear):
        event(change, files, [*outputs, parts["counted"], classify], cancels=running, **inner)
    gr.on(
        [parts["model"].input, parts["labels"].upload, parts["labels"].clear],
        lambda: show(STALE),
        None,
        outputs,
        cancels=running,
        **inner,
    )
    waiting = gr.update(interactive=False)
    gr.on(
        [sound.start_recording, sound.clear],
        lambda: (*show(EMPTY), waiting),
        None,
        [*outputs, listen],
        cancels=running,
        **inner,
    )
    sound.change(lambda chosen: gr.update(interactive=bool(chosen)), sound, listen, **inner)


def connect_api(choices: Choices, parts: dict) -> None:
    """The two endpoints; of /listen the input is one file, of /classify a list."""
    with gr.Row(visible=False):
        api, reply = gr.Button(), gr.JSON(label="notice and rows")
        clips = gr.File(label="Clips (.npy) or recordings", file_count="multiple")
        sound = gr.File(label="A recording")
    for name, source in (("classify", clips), ("listen", sound)):
        api.click(
            partial(answer, choices),
            [source, parts["model"]],
            reply,
            api_name=name,
            api_description=answer.__doc__,
            concurrency_id="models",
        )


def build_page(choices: Choices, shared: bool) -> gr.Blocks:
    inner = {"api_visibility": "private", "concurrency_id": "models", "show_progress": "hidden"}
    draw = partial(show_clip, choices)
    gr.set_static_paths(EXAMPLES)  # they are not copied, so not swept away
    with gr.Blocks(title=TITLE) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>What a research model hears in a voice.</p>", elem_id="title")
        with gr.Row():
            with gr.Column(scale=5):
                parts = build_inputs(list(choices), shared)
            with gr.Column(scale=6):
                verdict, facts, stop = build_card()
        results, scores, times, common, table, download, picture, explained = build_results()
        build_about(choices)
        session, number = gr.State(), gr.State()
        outputs = [verdict, facts, stop, results, scores, times, common, table, download]
        outputs += [session, number]
        drawn = {"fn": draw, "inputs": [session, number, explained], "outputs": picture, **inner}
        running = []
        triggers = [
            (parts["classify"].click, parts["files"]),
            (parts["listen"].click, parts["sound"]),
        ]
        triggers += [(button.click, paths) for button, paths in parts["examples"]]
        for trigger, source in triggers:
            fixed = isinstance(source, list)
            work = partial(run_example, choices, source) if fixed else partial(run_work, choices)
            inputs = [parts["labels"], parts["model"]]
            event = trigger(work, inputs if fixed else [source, *inputs], outputs, **inner)
            event.failure(show_lost, None, outputs, **inner)
            event.success(**drawn)
            running.append(event)
        stopped = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        stop.click(lambda: show(STOPPED), None, outputs, cancels=running, **stopped)
        connect_inputs(parts, outputs, running)
        times.select(choose_bar, None, number, **stopped).then(**drawn)
        table.select(choose_row, session, number, **stopped).then(**drawn)
        explained.input(**drawn)
        connect_api(choices, parts)
    return page


def run_example(
    choices: Choices, paths: list[str], _labels: str | None, model: str
) -> Iterator[tuple]:
    """As run_work, of an example: the visitor's labels are about other files."""
    yield from run_work(choices, paths, None, model)


# --- server -------------------------------------------------------------------------------------


def environment_port() -> int | None:
    text = os.environ.get("GRADIO_SERVER_PORT")
    try:
        return at_least(1, below=65_536)(text) if text else None
    except argparse.ArgumentTypeError as error:
        raise InputError(f"GRADIO_SERVER_PORT: {error}") from error


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Serves the page.")
    add = parser.add_argument
    add("--weights", metavar="FILE", nargs="+", help="or hf:USER/MODEL (default: weights/*)")
    host = "0.0.0.0 serves the network; default: GRADIO_SERVER_NAME's value, otherwise 127.0.0.1"
    add("--host", metavar="ADDRESS", help=host)
    port = "default: GRADIO_SERVER_PORT's value, otherwise the first free one from 7860"
    add("--port", metavar="N", type=at_least(1, below=65_536), help=port)
    add("--no-share", action="store_true", help="do not ask Gradio for a public link")
    add("--password", metavar="WORD", help="closes the page; default: DEMO_PASSWORD's value")
    args = parser.parse_args()
    args.host = args.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    args.port = args.port or environment_port()
    args.password = server.read_password(args.password)
    check_address(args.host, args.port)
    return args


def check_address(host: str, port: int | None) -> None:
    """InputError unless one can serve there; Gradio would try for minutes."""
    where = f"{host}:{port}" if port else host
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the page cannot be served at {where} ({reason})") from error


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Tensors are given back at once, and threads share a heap, instead of keeping one each.
    set_malloc(mmap_threshold=2**16, arena_max=1)
    args = parse_arguments()
    paths = predict.find_weights(args.weights)
    choices = name_choices(paths, predict.load_models(paths))
    warm_up = threading.Thread(target=log_mel, args=[np.eye(1, 4096)[0]])  # imports librosa
    warm_up.start()  # while the page is built: the first visitor need not wait
    share = not args.no_share and "SPACE_ID" not in os.environ
    page = build_page(choices, share)
    warm_up.join()
    try:
        where = args.host, args.port, share, args.password
        look = {"theme": THEME, "css_paths": CSS, "i18n": gr.I18n(**words.translations())}
        print(server.start(page, UPLOADS, *where, **look), flush=True)
    except (ValueError, httpx.HTTPError) as error:
        advice = "if a proxy is in the way, try NO_PROXY=127.0.0.1"
        raise InputError(f"the page cannot be served ({error}): {advice}") from error
    gc.freeze()  # what is here stays: no collection need look at it
    server.serve_until_stopped(page, UPLOADS)
    page.close(verbose=False)
    return 130


if __name__ == "__main__":
    run(main)
