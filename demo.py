"""Serves the page: spectrograms or a recording in, a verdict out.

    python demo.py --no-share

Shapes: M mel bins, T frames.
"""

import argparse
import asyncio
import base64
import contextlib
import gc
import io
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections import Counter
from functools import partial
from html import escape
from itertools import count, islice
from pathlib import Path

# PyTorch reads it while it is imported: large tensors in huge pages, which the system clears
# faster, and which go back to it at once, as with reuse_freed_memory they would not.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Gradio reads both while it is imported: no analytics, and uploads where they can be swept away.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_TEMP_DIR"] = (TEMPORARY := tempfile.TemporaryDirectory("", "speech-")).name

import gradio as gr
import httpx
import numpy as np
import safehttpx
from PIL import Image, ImageOps
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import predict
from speech.audio import log_mel
from speech.cli import InputError, Parser, at_least, deferred_signals, run
from speech.device import set_malloc
from speech.report import CLASS_NAMES, format_scores

EXAMPLES = Path(__file__).parent / "examples"
MAX_FILES = 256  # at once
MAX_UPLOAD_BYTES = 90 * 2**20  # half an hour of 16-bit mono at 48 kHz; 256 clips in float64
MAX_REQUEST_BYTES = 2**20  # of a request that is no upload; 256 paths are 0.1 MB
MIN_FREE_BYTES = 2**30  # with less free disk, uploads are refused
MAX_WAITING = 64  # in the queue; whoever comes then reads that the page is busy
KEEP_SECONDS, SWEEP_SECONDS = 30 * 60, 30  # of uploads: time for another look at the results
WRONG_PASSWORD_SECONDS = 1.0  # makes guessing slow
LEAST_SHOWN = 0.02  # a patch that moves a probability by less is painted fainter
OCTAVES = (250, 500, 1000, 2000, 4000, 8000, 16_000)  # Hz

Source = str | list[str] | None  # what a visitor chose: a recording, clips, or nothing
Choices = dict[str, predict.Models]  # by the names that the page offers
Ticks = list[tuple[str, float]]  # of an axis: text, place from 0 to 1

TITLE = "Depression detection from speech"
HELP = """If you are not well, or worry about somebody, talk to a doctor or to a person you trust.
[findahelpline.com](https://findahelpline.com) lists free, confidential help in your country; in an
emergency call your local number."""
WELCOME = "## The verdict appears here\nNo file at hand? Click an example, then Classify."
FILES = f"""**Your files** are used for the answer alone and are deleted from this server after
{KEEP_SECONDS // 60} minutes, and when the page is closed down. Your browser keeps nothing."""
RELAY = "Through a gradio.live link they pass Gradio's relay."

BLUE, ORANGE, GREY = "#3b82f6", "#ea580c", "#94a3b8"  # told apart by colour-blind eyes too
COLOURS = dict(zip((*CLASS_NAMES, "uncertain"), (BLUE, ORANGE, GREY), strict=True))
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **FONTS).set(
    button_primary_background_fill="*primary_600",  # contrasts of 4.5:1 and more
    body_text_color_subdued="*neutral_500",
    color_accent="*primary_600",
    link_text_color_dark="*secondary_400",
)
CSS = """
.gradio-container { max-width: 1120px !important; margin: 0 auto; }
.dark { --color-accent: var(--primary-400); }
#files [aria-label="common.upload"] { display: none; } /* a button in a button, without a name */
#probabilities, #table { --font-mono: var(--font); }
footer .divider { display: none; }
#recording { contain: inline-size; } /* or its player widens a phone's page */
.plot { display: grid; grid-template-columns: 4.2em 1fr; margin: 0; font-size: 0.8rem; }
.plot * { color: var(--body-text-color-subdued); position: relative; }
.plot span { position: absolute; white-space: nowrap; }
.plot .y span { right: 8px; transform: translateY(50%); }
.plot .x span { top: 4px; transform: translateX(-50%); }
.plot .x { grid-column: 2; height: 2em; }
.plot figcaption { grid-column: 2; }
.plot img { width: 100%; height: 240px; }
.plot svg { width: 100%; height: 110px; background: var(--background-fill-secondary); }
"""


# --- prediction ---------------------------------------------------------------------------------


def name_choices(paths: list[Path], models: predict.Models) -> Choices:
    """The ensemble, where there are several, and each file by its name, or path if that repeats."""
    ensemble = "Both" if len(paths) == 2 else f"All {len(paths)}"
    choices = {ensemble: models} if len(paths) > 1 else {}
    names = Counter([ensemble, *(path.stem for path in paths)])
    for path, model in zip(paths, models, strict=True):
        choices[path.stem if names[path.stem] == 1 else str(path)] = [model]
    return choices


def check_upload(source: Source) -> list[Path]:
    """The files that one visitor chose; the amount is bounded, for others wait."""
    paths = [Path(path) for path in ([source] if isinstance(source, str) else source or [])]
    if not paths:
        raise gr.Error("Choose a file first, or click an example.", print_exception=False)
    size = sum(path.stat().st_size for path in paths)
    if len(paths) > MAX_FILES or size > MAX_UPLOAD_BYTES:
        limit = f"at most {MAX_FILES} files and {MAX_UPLOAD_BYTES >> 20} MB at once, please."
        raise gr.Error(f"{len(paths)} files, {size >> 20} MB: {limit}", print_exception=False)
    return paths


def answer(choices: Choices, source: Source, model: str) -> dict:
    """What the API answers: the notice, and predict.py's rows of clips and of participants."""
    rows = predict.predict(choices[model], check_upload(source))
    return {"notice": predict.notice(choices[model]), "rows": [row._asdict() for row in rows]}


def write_csv(rows: list[predict.Row]) -> str:
    path = Path(tempfile.mkdtemp(dir=TEMPORARY.name), "predictions.csv")
    with predict.open_output(path) as write:
        for row in rows:
            write(row)
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


def draw_timeline(rows: list[predict.Row]) -> str:
    """A bar per window, up from 0.5 towards Depressed or down towards Not Depressed."""
    values, n = [row.probability for row in rows], len(rows)
    if n < 2:
        return ""
    text = f"Probability of depression in {n} windows: {min(values):.2f} to {max(values):.2f}, "
    text += f"{np.mean(values):.2f} in the mean. Grey is uncertain."
    bars = "".join(
        f'<rect x="{i + 0.05}" width="0.9" y="{1 - max(row.probability, 0.5):.3f}" '
        f'height="{abs(row.probability - 0.5) + 0.005:.3f}" fill="{COLOURS[row.verdict]}" />'
        for i, row in enumerate(rows)
    )
    svg = f'<svg viewBox="0 0 {n} 1" preserveAspectRatio="none" role="img" aria-label="{text}">'
    names = [f"{i}" for i in range(1, n + 1)]
    if len({row.participant for row in rows}) == 1:  # windows of a recording: by their seconds
        names = [f"{row.clip.rpartition('_clip_')[2]} s" for row in rows]
    x = [(escape(names[i]), (i + 0.5) / n) for i in range(0, n, -(-n // 8))]
    return add_axes(f"{svg}{bars}</svg>", x, [("0%", 0), ("50%", 0.5), ("100%", 1)], text)


# --- page ---------------------------------------------------------------------------------------


def format_result(people: list[predict.Row]) -> tuple[str, dict[str, float] | None]:
    """The verdict in words, and both classes' probabilities where it is about one person."""
    if not people:
        return "## No verdict\nNone of the files could be read: the notes below say why.", None
    if len(people) > 1:
        counts = Counter(person.verdict for person in people).most_common()
        return f"## {len(people)} people: " + ", ".join(f"{n} {word}" for word, n in counts), None
    _, name, p, word, note = people[0]
    whose = "one clip" if note == "mean of 1" else f"{note} clips"
    text = f"## {word[0].upper()}{word[1:]}\n{escape(name)}: {whose}"
    return text, dict(zip(CLASS_NAMES, (1 - p, p), strict=True))


def show_results(
    choices: Choices,
    source: Source,
    model: str,
    progress: gr.Progress = gr.Progress(),  # noqa: B008
) -> tuple:
    paths = check_upload(source)
    rows = predict.predict(choices[model], paths)  # nobody knows yet how many
    rows = list(progress.tqdm(rows, desc="Classifying", unit="clips"))
    words, probabilities = format_result([row for row in rows if not row.clip])
    clips = [row for row in rows if row.clip]
    scores = [f" {row.probability:.2f}" if row.verdict != "error" else "" for row in clips]
    shown = [(clips[i].clip + score, i) for i, score in enumerate(scores) if score]
    times = draw_timeline([clips[i] for _, i in shown])
    return (
        gr.Column(visible=True),
        words,
        gr.Label(probabilities, visible=bool(probabilities)),
        gr.HTML(times, visible=bool(times)),
        gr.Dropdown(shown, value=shown[0][1] if shown else None, visible=len(shown) > 1),
        [(row.clip, row.verdict + p, row.note) for row, p in zip(clips, scores, strict=True)],
        write_csv(rows),
        (paths, model),
    )


def show_clip(choices: Choices, session: tuple, number: int | None, explained: bool) -> str:
    """Reads the clip again: nobody's sound is kept in memory."""
    if number is None:
        return ""
    paths, model = session
    models = choices[model]
    windows = predict.read_windows(paths, models[0][1])
    name, _, note, clip = next(islice(windows, number, None))
    if clip is None:  # swept away by now
        return escape(note)
    moved = predict.explain(models, clip) if explained else None
    return draw_clip(name, clip, models[0][1]["preprocessing"]["sound"], moved)


def describe_weights(name: str, metadata: dict) -> str:
    """What a weights file says about itself, in Markdown."""
    data, test = metadata["data"], metadata["test"]
    sides = [f"{side} {n} ({data['participants'][side]})" for side, n in data["clips"].items()]
    versions = " ".join(f"{name} {version}" for name, version in metadata["versions"].items())
    about = f"### {escape(name)}\nData: {data['corpus'] or 'not named'}, split by "
    about += f"{data['split']}; clips (people): {', '.join(sides)}. Trained with {versions}.\n"
    heads = ["| Test score [95% interval] | clips | people |", "|---|---|---|"]
    rows = format_scores(test["clips"], test["participants"])
    return "\n".join([about, *heads, *(f"| {title} | {' | '.join(row)} |" for title, row in rows)])


def build_inputs(names: list[str], shared: bool) -> tuple[gr.Radio, list[tuple]]:
    """The left column -> the choice of model, and each button with what it classifies."""
    with gr.Column():
        model = gr.Radio(names, value=names[0], label="Model", elem_id="model")
        with gr.Tab("Spectrograms"):
            files = gr.File(label="Clips (.npy)", file_count="multiple", elem_id="files")
            gr.Examples([[[str(path)]] for path in sorted(EXAMPLES.glob("*.npy"))], files)
            classify = gr.Button("Classify", variant="primary", elem_id="classify")
        with gr.Tab("Sound"):
            look = {"waveform_options": {"show_recording_waveform": False}, "buttons": []}
            sound = gr.Audio(label="Recording", type="filepath", elem_id="recording", **look)
            gr.Examples(sorted(map(str, EXAMPLES.glob("*.wav"))), sound)
            listen = gr.Button("Classify", variant="primary", elem_id="listen")
        gr.Markdown(f"{FILES} {RELAY}" if shared else FILES)
    return model, [("classify", classify, files), ("listen", listen, sound)]


def build_page(choices: Choices, shared: bool) -> gr.Blocks:
    names, show, draw = list(choices), partial(show_results, choices), partial(show_clip, choices)
    notice = predict.notice(choices[names[0]])
    inner = {"api_visibility": "private", "concurrency_id": "models"}
    outer = {"api_description": answer.__doc__, "concurrency_id": "models"}
    gr.set_static_paths(EXAMPLES)  # they are not copied, so not swept away
    with gr.Blocks(title=TITLE) as page:
        gr.Markdown(f"# {TITLE}\n> **{notice}** {HELP}", elem_id="notice")
        with gr.Row():
            model, buttons = build_inputs(names, shared)
            with gr.Column():
                words = gr.Markdown(WELCOME, elem_id="verdict")
                with gr.Column(visible=False) as results:
                    label = gr.Label(show_label=False, show_heading=False, elem_id="probabilities")
                    gr.Markdown(notice)
                    times = gr.HTML(elem_id="timeline")
                    number = gr.Dropdown(label="Clip shown", elem_id="shown")
                    explained = gr.Checkbox(label="Show what moved the verdict", elem_id="explain")
                    picture = gr.HTML(elem_id="picture")
                    look = {"column_widths": ["36%", "34%", "30%"], "wrap": True}
                    heads = ["Clip", "Verdict (P of Depressed)", "Note"]
                    table = gr.Dataframe(headers=heads, elem_id="table", **look)
                    download = gr.DownloadButton("Download as CSV", elem_id="csv")
        with gr.Accordion("About this model", open=False, elem_id="about"):
            for name, [(_, metadata), *others] in choices.items():
                if not others:
                    gr.Markdown(describe_weights(name, metadata))
        with gr.Row(visible=False):
            api, reply, session = gr.Button(), gr.JSON(), gr.State()
        outputs = [results, words, label, times, number, table, download, session]
        drawn = draw, [session, number, explained], picture
        for name, button, source in buttons:
            shown = show, [source, model], outputs
            button.click(*shown, show_progress_on=words, **inner).success(*drawn, **inner)
            api.click(partial(answer, choices), [source, model], reply, api_name=name, **outer)
        gr.on([number.input, explained.input], *drawn, **inner)
    return page


# --- server -------------------------------------------------------------------------------------


def limit_bodies(app: ASGIApp) -> ASGIApp:
    """ASGI middleware: no request brings more than its kind may, announced or not."""

    async def limited(scope: Scope, receive: Receive, send: Send) -> None:
        limit, announced = MAX_REQUEST_BYTES, dict(scope.get("headers", ())).get(b"content-length")
        if scope.get("path", "").endswith("/upload"):
            free = shutil.disk_usage(TEMPORARY.name).free - MIN_FREE_BYTES
            limit = max(0, min(MAX_UPLOAD_BYTES, free))
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, int(announced or 0)) > limit:  # Gradio cleans up and answers 413
                raise MultiPartException(f"Over the maximum allowed size, {limit >> 20} MB at once")
            return message

        await app(scope, receive_limited, send)

    return limited


async def refuse_address(host: str) -> None:
    raise gr.Error("Addresses are not fetched: upload the file.", print_exception=False)


def sweep(folder: str, seconds: float) -> None:
    """Removes what is older than that: Gradio itself forgets uploads that were broken off."""
    for path in sorted(Path(folder).rglob("*"), reverse=True):  # files before their folder
        with contextlib.suppress(OSError):  # a folder that is not empty, a file just taken away
            if path.stat().st_ctime < time.time() - seconds:
                remove = path.rmdir if path.is_dir() else path.unlink
                remove()


async def log_in(password: str, _user: str, attempt: str) -> bool:
    right = secrets.compare_digest(attempt.encode(), password.encode())
    await asyncio.sleep(0 if right else WRONG_PASSWORD_SECONDS)  # holds up nobody else
    return right


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description="Serves the page.")
    add = parser.add_argument
    add("--weights", metavar="FILE", nargs="+", help="default: weights/*, otherwise examples/*")
    add("--host", metavar="ADDRESS", help="0.0.0.0 serves the network; default: 127.0.0.1")
    port = "default: the first free one from 7860"
    add("--port", metavar="N", type=at_least(1, below=65_536), help=port)
    add("--no-share", action="store_true", help="do not ask Gradio for a public link")
    add("--password", metavar="WORD", help="closes the page; default: DEMO_PASSWORD's value")
    return parser.parse_args()


def serve(page: gr.Blocks, args: argparse.Namespace, share: bool) -> str:
    """Starts the server -> one line that says where."""
    safehttpx.async_validate_url = refuse_address  # or visitors could send it to any address
    password = args.password or os.environ.get("DEMO_PASSWORD")
    page.queue(api_open=False, max_size=MAX_WAITING, default_concurrency_limit=2)
    with contextlib.redirect_stdout(io.StringIO()):  # Gradio explains a refused link at length
        _, local, public = page.launch(
            share=share,
            server_name=args.host,
            server_port=args.port,
            auth=partial(log_in, password) if password else None,
            auth_message="Any name, and the password that you were given.",
            app_kwargs={"middleware": [Middleware(limit_bodies)]},
            max_file_size=MAX_UPLOAD_BYTES,
            state_session_capacity=1000,
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            footer_links=["api"],
            theme=THEME,
            css=CSS,
            quiet=True,
            prevent_thread_lock=True,
        )
    if public:
        return f"Serving at {local}, and for whoever has the link at {public}"
    reason = "Gradio could not be reached" if share else "none was asked for"
    return f"Serving at {local} (no public link: {reason})"


def sweep_until_stopped() -> None:
    """Waits for Ctrl-C or SIGTERM, and keeps disk and memory free meanwhile."""
    with deferred_signals() as signals:  # an interrupt that is raised can get lost among imports
        log_mel(np.eye(1, 4096)[0])  # imports librosa: the first visitor need not wait
        gc.freeze()  # what is here stays: no collection need look at it
        for second in count(1):
            time.sleep(1)
            if signals:
                return
            if second % SWEEP_SECONDS == 0:
                sweep(TEMPORARY.name, KEEP_SECONDS)
                gc.collect()  # sessions that ended are cycles; Python would leave them for minutes


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Tensors are given back at once, and threads share a heap, instead of keeping one each.
    set_malloc(mmap_threshold=2**16, arena_max=1)
    args = parse_arguments()
    paths = predict.find_weights(args.weights)
    choices = name_choices(paths, predict.load_models(paths))
    share = not args.no_share and "SPACE_ID" not in os.environ
    page = build_page(choices, share)
    try:
        print(serve(page, args, share), flush=True)
    except (ValueError, httpx.HTTPError) as error:
        advice = "if a proxy is in the way, try NO_PROXY=127.0.0.1"
        raise InputError(f"the page cannot be served ({error}): {advice}") from error
    sweep_until_stopped()
    page.close(verbose=False)
    return 130


if __name__ == "__main__":
    run(main)
