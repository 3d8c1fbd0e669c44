"""Serves the page: spectrograms or a recording in, a verdict out.

    python demo.py --no-share

Shapes: M mel bins, T frames.
"""

import argparse
import csv
import errno
import gc
import math
import os
import re
import signal
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import date
from functools import partial
from html import escape
from itertools import count
from pathlib import Path

from speech import server

# PyTorch reads it while it is imported: large tensors in huge pages, which the system clears
# faster, and which go back to it at once, as with reuse_freed_memory they would not.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
with server.quick_imports():
    # Gradio reads these while it is imported: uploads where they can be swept, and no analytics.
    UPLOADS = server.open_folder()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    import predict

    import gradio as gr

if not os.access(os.path.expanduser("~"), os.W_OK):  # a container's user: caches go with us
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        os.environ.setdefault(name, str(UPLOADS.path / ".cache"))

from speech import apart, look, turns, words
from speech.audio import ENDINGS, SETTINGS, log_mel, read_sound, warm_up
from speech.card import (
    EMPTY,
    READY,
    RECORDING,
    STALE,
    STOPPED,
    USE,
    Card,
    Facts,
    describe_notes,
    describe_notice,
    describe_weights,
    draw_failure,
    draw_progress,
    format_result,
)
from speech.cli import InputError, Parser, at_least, run, show_controls
from speech.dataset import min_max, quote_formulas, read_labels, read_spectrogram
from speech.device import keep_little_memory
from speech.familiarity import fill
from speech.labelled import draw_scores, match_labels
from speech.report import THRESHOLD
from speech.server import MAX_FILES, MAX_UPLOAD_BYTES
from speech.timeline import Session, draw_clip, draw_timeline, embed, find_ticks, is_clip
from speech.verdict import ERROR, NO_VERDICT, Row, clamp
from speech.words import KEEP_SECONDS, SWEPT

import httpx
import numpy as np
from gradio.data_classes import ListFiles
from gradio.events import Dependency
from pydantic import model_validator

gr.File._process_single_file = lambda _, file: file.path  # Gradio's leaves an empty file each

EXAMPLES = Path(__file__).parent / "examples"
MAX_LABELS_BYTES = 2**20  # 30,000 rows, of which 256 files need few
POLL_SECONDS = 0.25  # between two looks at the work: short ones end without showing progress

Source = str | list[str] | None  # what a visitor chose: a recording, clips, or nothing
Choices = dict[str, predict.Models]  # by the names that the page offers

TITLE = "Depression detection from speech"
KINDS = "Clips (.npy) or recordings (WAV, FLAC, MP3, M4A, OGG, WebM and others)"
SMALLER = "save recordings as FLAC or MP3, or at 16 kHz mono"
PRIVACY = f"Used for the answer alone; deleted here after {KEEP_SECONDS // 60} minutes."
RELAY = "Through a gradio.live link files pass Gradio's relay."
HOURS = f"{turns.MAX_SOUND_SECONDS // 3600} hours of sound"
MOST = f"at most {MAX_FILES} files and {MAX_UPLOAD_BYTES >> 20} MB at once"
ACCEPT = ",".join(["audio/*", ".npy", *(f".{ending}" for ending in ENDINGS.split("|"))])
LIMITS = f"{KINDS}; {MOST}, {HOURS}. One voice only: cut an interviewer out first (for DAIC-WOZ "
LIMITS += "and its like <code>prepare.py</code> does)."
EXAMPLE_INPUTS = {  # made by synthetic.py, so their labels are known
    "Synthetic voice, label 1": ["S017_clip_0.wav"],
    "Synthetic voice, label 0": ["S014_clip_0.wav"],
    "Four voices (.npy)": [f"S{n:03}_clip_0.npy" for n in (4, 14, 17, 20)],
}

NO_MICROPHONE = "No microphone is found, or your browser keeps it from this page (it takes https "
NO_MICROPHONE += "or localhost, and your leave): record elsewhere and choose the file under Files."
REFUSED = f"The page did not take it: it takes {MOST}. Files are {SWEPT.replace('it', 'them')}. "
REFUSED += "If neither is the reason, it is busy: try again in a minute."
LOST = "This result is no longer kept: classify again."  # of too many visitors


# --- prediction ---------------------------------------------------------------------------------


class Stopped(Exception):
    """The visitor does not wait any more."""


class Work:
    """What a visitor waits for: how far it is, and whether they still do."""

    def __init__(self, clips: int, seconds: float | None):
        self.clips, self.seconds = clips, seconds  # in all; of a clip, None: there is no sound
        self.read = self.predicted = 0
        self.stopped, self.has_gone = threading.Event(), turns.watch_caller()
        self.turn = turns.TURNS.join()  # a long job lets short ones on
        self.budget = turns.Budget()  # of what is decoded; once it is spent, no tick passes
        self.density = 0  # of what is being decoded
        self.places = []  # those of turns.PLACES that it has one of

    def tick(self, clips: int = 0, seconds: float = 0.0) -> None:
        if self.stopped.is_set() or self.has_gone():
            raise Stopped
        self.budget.spend(seconds, self.density)
        for most, places in turns.PLACES.items():
            if self.budget.spent > most and places not in self.places:
                if not places.acquire(blocking=False):
                    raise InputError("busy with other long recordings: try again in a few minutes")
                self.places.append(places)
        self.turn.rest()
        self.read += clips

    def __enter__(self) -> None:
        self.turn.__enter__()

    def __exit__(self, *_: object) -> None:
        self.turn.__exit__()
        for places in self.places:
            places.release()

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


def name_choices(paths: list[Path], models: predict.Models) -> Choices:
    """The ensemble, where there are several, and each file by its name, or path if that repeats."""
    ensemble = "Both" if len(paths) == 2 else f"All {len(paths)}"
    choices = {ensemble: models} if len(paths) > 1 else {}
    names = Counter([ensemble, *(path.stem for path in paths)])
    for path, model in zip(paths, models, strict=True):
        choices[path.stem if names[path.stem] == 1 else str(path)] = [model]
    return choices


def list_facts(choices: Choices, model: str) -> Facts:
    """What the weights of a choice say of themselves, by their names."""
    alone = {name: models[0][1] for name, models in choices.items() if len(models) == 1}
    return {model: alone[model]} if model in alone else alone


def list_paths(source: Source) -> list[Path]:
    return [Path(path) for path in ([source] if isinstance(source, str) else source or [])]


def describe_excess(files: int, size: int) -> str:
    return f"{files} file{'s' if files > 1 else ''}, {size >> 20} MB; {MOST}: {SMALLER}"


def check_upload(source: Source, labels: str | None = None) -> list[Path]:
    """The files that one visitor chose; the amount is bounded, for others wait."""
    paths, tables = list_paths(source), list_paths(labels)
    if not paths:
        raise InputError("Choose a file first, or click an example.")
    if gone := [path.name for path in paths + tables if not path.exists()]:
        raise InputError(f"{gone[0]}: {SWEPT}")
    if large := [path.name for path in tables if path.stat().st_size > MAX_LABELS_BYTES]:
        most = f"{MAX_LABELS_BYTES >> 20} MB"
        raise InputError(f"{large[0]}: over {most}, expected a row per clip with id and label")
    size = sum(path.stat().st_size for path in paths)
    if len(paths) > MAX_FILES or size > MAX_UPLOAD_BYTES:
        raise InputError(describe_excess(len(paths), size))
    turns.check_sources(paths)
    return paths


def plan_work(paths: list[Path], metadata: dict) -> Work:
    """How many clips there will be, by the headers."""
    length = (metadata["preprocessing"]["sound"] or SETTINGS)["clip_seconds"]
    clips = 0
    for path in paths:
        clips += 1
        if not is_clip(path):
            clips += max(math.ceil(turns.read_announced(path)[0] / length) - 1, 0)
    return Work(clips, None if all(map(is_clip, paths)) else length)


def tell_apart(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken."""
    names = (f"{name} ({n})" if n > 1 else name for n in count(1))
    taken.add(new := next(other for other in names if other not in taken))
    return new


def name_people(paths: list[Path]) -> dict[Path, str]:
    """Whose each file is; files of one name are of different people: there are no folders here."""
    seen, people = Counter(), {}
    for path in paths:
        people[path] = show_controls(path.stem).split("_clip_")[0], seen[path.name]
        seen[path.name] += 1
    taken = {person for person, _ in people.values()}
    names = {
        who: tell_apart(who[0], taken) if who[1] else who[0]
        for who in dict.fromkeys(people.values())
    }
    return {path: names[who] for path, who in people.items()}


def name_clips(rows: list[Row]) -> list[Row]:
    """No two clips have one name: table, timeline and CSV know them by it."""
    taken = set()
    return [row._replace(clip=tell_apart(row.clip, taken)) if row.clip else row for row in rows]


def classify(models: predict.Models, paths: list[Path], work: Work) -> tuple[list, list]:
    """predict.py's rows, and of each clip which path it is from and where it starts."""
    places, metadata, people = [], models[0][1], name_people(paths)

    def read() -> Iterator[predict.Window]:
        for number, path in enumerate(paths):
            seconds, work.density = turns.read_announced(path)
            if is_clip(path):
                work.tick(seconds=seconds)
            for window in predict.read_windows([path], metadata, work.tick, people):
                work.tick()  # sound over the limit is not this file's error but the whole work's
                places.append((number, round(window.start, 3)))
                yield window

    rows = []
    with work:
        for row in predict.predict_windows(models, read(), tick=work.tick):
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
    """What both endpoints do."""
    try:
        paths, models = check_upload(source), choices[model]
        rows, places = classify(models, paths, Work(len(paths), None))
    except InputError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except Stopped as error:
        waited = "nobody waited for the answer: fetch it within"
        reason = f"{waited} {turns.UNHEARD_SECONDS:g} s of the call"
        raise gr.Error(reason, print_exception=False) from error
    notice = describe_notice(list_facts(choices, model))
    return {"notice": notice, "rows": tabulate(name_clips(rows), places, model, notice)}


def tabulate(rows: list[Row], places: list, model: str, notice: str) -> list[dict]:
    """predict.py's columns, and what tells the table from another."""
    starts = iter([int(start) if start == int(start) else start for _, start in places])
    facts = {"model": model, "date": date.today().isoformat(), "threshold": THRESHOLD}
    facts["notice"] = notice
    return [row._asdict() | {"seconds": next(starts) if row.clip else None} | facts for row in rows]


def write_csv(table: list[dict], paths: list[Path]) -> str:
    """The table as a file, named after its input."""
    first, more = paths[0].stem, len(paths) - 1
    name = re.sub(r"[^\w.-]", "_", first)[:80] + (f"_and_{more}_more" if more else "")
    path = Path(tempfile.mkdtemp(dir=UPLOADS.ensure()), f"{name}_predictions.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table[0])
        writer.writerows(quote_formulas(row.values()) for row in table)
    return str(path)


# --- what the page does -------------------------------------------------------------------------


def show(card: Card, working: bool = False) -> tuple:
    """A state of the page without a result."""
    hidden, kept = gr.update(visible=False), [gr.skip()] * 8
    shown = gr.skip() if working else card  # progress may come after what has stopped the work
    return *card, gr.update(visible=working), hidden, *kept, shown, working


def score_labels(rows: list[Row], labels: str | None, models: predict.Models) -> str:
    """report.py's table and pictures, where a file of labels was chosen."""
    if not labels:
        return ""
    pictures = []
    try:
        frame, notes = read_labels(labels)
        text = predict.score_against_labels(rows, frame, models, Path(Path(labels).name))
        text = "\n".join([text, *notes])
        pictures = draw_scores(match_labels(rows, frame))
    except InputError as error:
        text = str(error).replace(labels, Path(labels).name)
    images = "".join(f'<img src="{embed(png)}" alt="{name}">' for name, png in pictures)
    return (
        f'<h3>Against your labels</h3><pre tabindex="0">{escape(text)}</pre>'
        f'<div class="pictures">{images}</div>'
    )


def list_clips(clips: list[Row], common: str) -> list[tuple]:
    """The table's rows; a note that is not said of all stands beside the verdict."""
    return [
        (
            row.clip,
            None if row.verdict == NO_VERDICT else round(clamp(row.probability), 2),
            f"{row.verdict}: {row.note}" if row.note and not common else row.verdict,
        )
        for row in clips
    ]


def show_result(
    choices: Choices, model: str, paths: list[Path], labels: str | None, answer: tuple
) -> tuple:
    (rows, places), models = answer, choices[model]
    with turns.TURNS.join():
        scores = score_labels(rows, labels, models)
    rows = name_clips(rows)
    facts, clips = list_facts(choices, model), [row for row in rows if row.clip]
    good = [i for i, row in enumerate(clips) if row.verdict != ERROR]
    table = tabulate(rows, places, model, describe_notice(facts))
    shown = [clips[i] for i in good], [places[i] for i in good], write_csv(table, paths)
    session = Session(paths, model, *shown)
    sound = models[0][1]["preprocessing"]["sound"] or SETTINGS
    times, common = draw_timeline(session, sound["clip_seconds"]), describe_notes(session.clips)
    for i, row in enumerate(rows):
        if row.verdict == ERROR:
            suffix = show_controls(paths[places[i][0]].suffix)
            rows[i] = row._replace(clip=row.clip + suffix)
    return (
        *format_result(facts, rows, len(paths)),
        gr.update(visible=False),
        gr.update(visible=bool(good)),
        gr.update(value=scores, visible=bool(scores)),
        gr.update(value=times, visible=bool(times)),
        gr.update(value=f"<p class=hint>{escape(common)}</p>", visible=bool(common)),
        gr.update(value=list_clips(session.clips, common), visible=len(good) > 1),
        session.csv,
        session,
        0 if good else None,
        "",  # until it is drawn: the last result's would be another recording
        gr.skip(),
        gr.skip(),
    )


def run_work(choices: Choices, source: Source, labels: str | None, model: str) -> Iterator[tuple]:
    """Yields the page's states: working, then a result or an error. Closed, it ends the work."""
    work = None
    try:
        paths, models = check_upload(source, labels), choices[model]
        work = plan_work(paths, models[0][1])
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(classify, models, paths, work)
            try:
                while not wait([future], POLL_SECONDS).done:
                    yield show(draw_progress(*work.progress()), working=True)
            finally:  # Stop, or a closed tab, closes this generator
                work.stopped.set()
        yield show_result(choices, model, paths, labels, future.result())
    except InputError as error:
        yield show(draw_failure(str(error)))
    except Stopped:  # nobody is there to see it
        yield show(STOPPED)
    except Exception:  # a visitor never reads a bare "Error"; the reason is on stderr
        server.log_failure()
        yield show(draw_failure("Something failed on the server; it is noted there. Try again."))


def show_excess(event: gr.EventData) -> tuple:
    """The page has counted before the upload."""
    return show(draw_failure(describe_excess(*event.index)))


def show_lost(
    number: int, shown: Card | int, begun: bool, *chosen: list[Path] | None
) -> tuple | dict:
    """Gradio refused what was chosen before we saw it, or the work was stopped.

    Args:
        number: of the button whose work it was.
        shown: the card of what stopped it, over which progress may have been written, or the number
            of the button that was pressed last.
        begun: whether that button's work has shown progress.
    """
    if not isinstance(shown, int):
        return show(shown)
    if shown != number or begun:
        return gr.skip()  # what ended it has the card
    gone = [path.name for paths in chosen for path in paths or [] if not path.exists()]
    return show(draw_failure(f"{gone[0]}: {SWEPT}" if gone else REFUSED))


def show_change(session: Session | None, *chosen: list[Path] | None) -> tuple:
    """The card after a change of what is chosen, or of how it is classified."""
    return show((STALE if session else READY) if any(chosen) else EMPTY)


def show_clip(
    choices: Choices, session: Session | None, number: int | None, explained: bool
) -> str:
    """Reads one clip again: nobody's sound is kept in memory."""
    if session is None:
        return f"<p>{LOST}</p>"
    if number is None or not 0 <= number < len(session.clips):
        return ""
    models, (file, start) = choices[session.model], session.places[number]
    with turns.TURNS.join() as turn:
        try:
            clip = read_window(session.paths[file], start, models[0][1])
        except InputError as error:
            return f"<p>{escape(str(error))}</p>"
        moved = predict.explain(models, clip, lambda *_: turn.rest()) if explained else None
    sound = models[0][1]["preprocessing"]["sound"]
    return draw_clip(session.clips[number].clip, clip, find_ticks(clip.shape, sound), moved)


def choose_bar(session: Session | None, event: gr.EventData) -> int | None:
    """The clip that a visitor says the bar is of; it is kept, so nothing else may be."""
    clips = range(len(session.clips)) if session else ()
    return event.index if type(event.index) is int and event.index in clips else None


def choose_row(session: Session, event: gr.SelectData) -> int | None:
    """Which clip a row of the table is, however it is sorted."""
    names = [row.clip for row in session.clips] if session else []
    return names.index(event.row_value[0]) if event.row_value[0] in names else None


def show_download(session: Session | None) -> tuple | dict:
    """The browser itself says only that there is no such file."""
    if session and Path(session.csv).exists():
        return gr.skip()
    return show(draw_failure(f"{SWEPT.capitalize()}." if session else LOST))


def count_files(files: Source) -> str:
    """`200 files, 12 people`."""
    paths = list_paths(files)
    people = len(set(name_people(paths).values()))
    text = f"{len(paths)} file{'s' if len(paths) > 1 else ''}, "
    return text + ("1 person" if people == 1 else f"{people} people") if paths else ""


# --- page ---------------------------------------------------------------------------------------

QUICK = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
WORKING = {"api_visibility": "private", "show_progress": "hidden", "concurrency_id": "models"}
DRAW = {"fn": None, "js": "() => document.getElementById('draw').click()", **QUICK}
BUTTONS = {"classify": "files", "listen": "sound"}  # what each is about


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
            data = (
                f'data-accept="{ACCEPT}" data-files="{MAX_FILES}" data-bytes="{MAX_UPLOAD_BYTES}"'
            )
            more = '<button type="button" id="more" hidden>Add files</button>'
            limits = f'{more}<p class="hint" {data}>{LIMITS}</p>'
            limits = gr.HTML(limits, js_on_load=look.INPUTS_JS)
            with gr.Accordion("I have labels (dataset.csv)", open=False, elem_id="labelled"):
                labels = gr.File(label="dataset.csv: id,label", height=110, elem_id="labels")
            classify = gr.Button(
                "Classify", variant="primary", interactive=False, elem_id="classify"
            )
        with gr.Tab("Microphone"):
            gr.HTML(f'<p class="hint" hidden>{NO_MICROPHONE}</p>', js_on_load=look.MICROPHONE_JS)
            quiet = {"waveform_options": {"show_recording_waveform": False}, "buttons": []}
            sound = gr.Audio(
                label="Recording",
                type="filepath",
                sources=["microphone"],
                elem_id="recording",
                **quiet,
            )
            gr.Markdown("One voice, 8 seconds or more, in a quiet room.", elem_classes="hint")
            listen = gr.Button("Classify", variant="primary", interactive=False, elem_id="listen")
    several = len(names) > 1
    model = gr.Radio(names, value=names[0], label="Model", elem_id="model", visible=several)
    gr.HTML(f'<p class="hint">{f"{PRIVACY} {RELAY}" if shared else PRIVACY}</p>')
    kept = {part: gr.State() for part in (files, sound, labels)}  # their paths
    parts = dict(examples=examples, counted=counted, files=files, limits=limits, labels=labels)
    return parts | dict(model=model, classify=classify, sound=sound, listen=listen, kept=kept)


def build_card() -> tuple:
    word, text = EMPTY
    with gr.Column(elem_id="card"):
        verdict = gr.HTML(word, elem_id="verdict", js_on_load=look.CARD_JS)
        facts = gr.HTML(text, elem_id="facts")
        stop = gr.Button("Stop", visible=False, elem_id="stop")
        notice = f'<p id="diagnosis">{words.mark("notice")}</p><p>{words.mark("help")}</p>'
        gr.HTML(notice, elem_id="notice", js_on_load=look.WORDS_JS)
    return verdict, facts, stop


def build_results() -> tuple:
    with gr.Column(visible=False, elem_id="results") as results:
        scores = gr.HTML(elem_id="scores", visible=False)
        times = gr.HTML(elem_id="timeline", js_on_load=look.TIMELINE_JS)
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
        for name, [(_, metadata), *others] in choices.items():
            if not others:
                brief, rest = describe_weights(name, metadata)
                gr.Markdown(brief)
                with gr.Accordion(f"More about {name}", open=False):
                    gr.Markdown(rest)
        gr.Markdown(USE)


def connect_inputs(parts: dict, outputs: list, session: gr.State, running: list) -> None:
    """Any change hides the result and ends the work; a button works when there is something."""
    # Of what changes during an answer the last counts: "once", the default, forgets it.
    ends = QUICK | {"cancels": running, "trigger_mode": "always_last"}
    files, sound, labels = (parts[name] for name in ("files", "sound", "labels"))
    chosen = [parts["kept"][part] for part in (files, sound)]

    def choose(paths: Source, session: Session | None) -> tuple:
        ready = gr.update(interactive=bool(paths))
        return *show_change(session, list_paths(paths)), ready, count_files(paths)

    for part, kept in parts["kept"].items():
        part.change(list_paths, part, kept, **QUICK)
    ready = parts["classify"], parts["counted"]
    for event in (files.upload, files.delete, files.clear):
        chose = event(choose, [files, session], [*outputs, *ready], **ends)
        chose.failure(lambda: show(draw_failure(REFUSED)), None, outputs, **QUICK)
    changes = [parts["model"].input, labels.upload, labels.clear]
    gr.on(changes, show_change, [session, *chosen], outputs, **ends)
    parts["limits"].select(show_excess, None, outputs, **QUICK)
    waiting = gr.update(interactive=False)
    recorder = [*outputs, parts["listen"]]
    sound.start_recording(lambda: (*show(RECORDING), waiting), None, recorder, **ends)
    sound.clear(lambda: (*show(EMPTY), waiting), None, recorder, **ends)
    sound.stop_recording(lambda session: show_change(session, [True]), session, outputs, **QUICK)
    sound.change(lambda paths: gr.update(interactive=bool(paths)), sound, parts["listen"], **QUICK)


class Sources(ListFiles):
    """A list of files, or one alone, as Gradio's own snippets have it."""

    @model_validator(mode="before")
    @classmethod
    def wrap(cls, data: object) -> object:
        return [data] if isinstance(data, dict) else data


ANSWER = """Returns {"notice", "rows"}: a row per clip, then one per person, whose "clip" is empty.
A row has the columns of the page's CSV: clip, participant, probability (that of Depressed, 0 to 1,
null where a file cannot be read), verdict ("Depressed", "Not Depressed", "uncertain", "no verdict"
or "error"), note (why), spread (how far its networks differ, null of a single one), seconds (where
the clip starts), model, date, threshold, notice.
To run a snippet, put your own file where it says interview.wav or /path/to/your/file. JavaScript:
handle_file("interview.wav") in Node, handle_file(input.files[0]) in a browser, in the place of
exampleFile and the two lines above. cURL in bash: begin with `shopt -s lastpipe`, in a script."""
ENDPOINTS = {
    "classify": "Classifies clips (.npy) or recordings, one or many.",
    "listen": "Classifies one recording.",
}


def connect_api(choices: Choices, parts: dict) -> None:
    """The two endpoints; of /listen the input is one file, of /classify a list."""
    example = {"path": (name := "interview.wav"), "url": name, "meta": {"_type": "gradio.FileData"}}
    with gr.Row(visible=False):
        api, reply = gr.Button(), gr.JSON(label="notice and rows")
        clips = gr.File(label="Clips (.npy) or recordings", file_count="multiple")
        sound = gr.File(label="A recording")
    clips.data_model = Sources
    clips.example_inputs, sound.example_inputs = lambda: [example], lambda: example
    for (name, description), source in zip(ENDPOINTS.items(), (clips, sound), strict=True):
        api.click(
            partial(answer, choices),
            [source, parts["model"]],
            reply,
            api_name=name,
            api_description=f"{description} {ANSWER}",
            concurrency_id="models",
        )


def connect_drawing(choices: Choices, inputs: list, picture: gr.HTML) -> Dependency:
    """The one event that draws, for all that ask by DRAW; of those meanwhile it takes the last."""
    return gr.Button(visible="hidden", elem_id="draw").click(
        partial(show_clip, choices), inputs, picture, trigger_mode="always_last", **WORKING
    )


def connect_work(parts: dict, runs: list, states: list, outputs: list, drawing: Dependency) -> list:
    """What a press of a button begins -> the events that work.

    Args:
        runs: of each button what it does, and with which inputs.
        states: the card of what stopped the work or the button pressed, and whether it has begun.
    """
    running = []
    for button, work, inputs in runs:
        pressed = button.click(partial(tuple, (len(running), False)), None, states, **QUICK)
        pressed.failure(lambda: show(draw_failure(REFUSED)), None, outputs, **QUICK)
        event = pressed.then(work, inputs, outputs, **WORKING)
        kept = [kept for part, kept in parts["kept"].items() if part in inputs]
        lost = partial(show_lost, len(running))
        event.failure(lost, [*states, *kept], outputs, **QUICK)
        event.success(**DRAW)
        running.append(event)
    for (button, *_), event in zip(runs, running, strict=True):  # new work ends the others'
        others = [other for other in running if other != event]
        button.click(None, cancels=[drawing, *others], **QUICK)
    return running


def build_page(choices: Choices, shared: bool) -> gr.Blocks:
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
        session, number, shown, begun = gr.State(), gr.State(), gr.State(EMPTY), gr.State(False)
        outputs = [verdict, facts, stop, results, scores, times, common, table, download]
        outputs += [session, number, picture, shown, begun]
        drawing = connect_drawing(choices, [session, number, explained], picture)
        work, more = partial(run_work, choices), [parts["labels"], parts["model"]]
        runs = [(parts[button], work, [parts[part], *more]) for button, part in BUTTONS.items()]
        for button, paths in parts["examples"]:
            runs.append((button, partial(run_example, choices, paths), more))
        running = connect_work(parts, runs, [shown, begun], outputs, drawing)
        stop.click(lambda: show(STOPPED), None, outputs, cancels=running, **QUICK)
        connect_inputs(parts, outputs, session, running)
        for select, choose in ((times.select, choose_bar), (table.select, choose_row)):
            chosen = select(choose, session, number, trigger_mode="multiple", **QUICK)
            chosen.then(**DRAW)
        explained.input(**DRAW)
        download.click(show_download, session, outputs, **QUICK)
        connect_api(choices, parts)
    return page


def run_example(
    choices: Choices, paths: list[str], _labels: str | None, model: str
) -> Iterator[tuple]:
    """As run_work, of an example: the visitor's labels are about other files."""
    yield from run_work(choices, paths, None, model)


# --- server -------------------------------------------------------------------------------------


def read_number(name: str) -> int | None:
    """A variable's number; None if it is empty, and then it is removed: Gradio cannot read it."""
    if not (text := os.environ.get(name)):
        os.environ.pop(name, None)
    try:
        return at_least(1, below=65_536)(text) if text else None
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{name}: {error}") from error


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Serves the page.")
    add = parser.add_argument
    weights = "or hf:USER/MODEL (default: weights/*, otherwise the example's)"
    add("--weights", metavar="FILE", nargs="+", help=weights)
    host = "0.0.0.0 serves the network; default: GRADIO_SERVER_NAME's value, otherwise 127.0.0.1"
    add("--host", metavar="ADDRESS", help=host)
    port = "default: GRADIO_SERVER_PORT's value, otherwise the first free one from 7860"
    add("--port", metavar="N", type=at_least(1, below=65_536), help=port)
    add("--no-share", action="store_true", help="do not ask Gradio for a public link")
    add("--password", metavar="WORD", help="closes the page; default: DEMO_PASSWORD's value")
    args = parser.parse_args()
    named = os.environ.pop("GRADIO_SERVER_NAME", "")  # or Gradio, which looks for a port by IPv4
    args.host = (args.host or named or "127.0.0.1").strip("[]")  # of an IPv6 address
    args.port = args.port or read_number("GRADIO_SERVER_PORT")
    read_number("GRADIO_NUM_PORTS")  # Gradio reads it again
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
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)  # EACCES: below 1024
        advice = ": choose another --port" if taken else ""
        raise InputError(f"the page cannot be served at {where} ({reason}){advice}") from error


def load_rest() -> None:
    """Loads what the first recording needs, while the first page is looked at."""
    warm_up()
    apart.SERVER.start()
    gc.freeze()  # what is here stays: no collection need look at it


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_little_memory()
    args = parse_arguments()
    paths = predict.find_weights(args.weights)
    choices = name_choices(paths, predict.load_models(paths))
    apart.isolate(turns.step_aside)
    share = not args.no_share and "SPACE_ID" not in os.environ
    page = build_page(choices, share)
    try:
        host = f"[{args.host}]" if ":" in args.host else args.host
        where = host, args.port, share, args.password
        style = {"theme": look.THEME, "css_paths": look.CSS}
        print(server.start(page, UPLOADS, *where, **style), flush=True)
    except OSError as error:
        if "empty port" not in str(error):  # Gradio's words, once it has tried a hundred
            raise
        raise InputError("no free port from 7860 on: choose one with --port") from error
    except (ValueError, httpx.HTTPError) as error:
        advice = "if a proxy is in the way, try NO_PROXY=127.0.0.1"
        raise InputError(f"the page cannot be served ({error}): {advice}") from error
    threading.Thread(target=load_rest, daemon=True).start()
    server.serve_until_stopped(page, UPLOADS)
    page.close(verbose=False)
    return 130


if __name__ == "__main__":
    run(main)
