"""speech/timeline.py: a spectrogram with its axes, and a button for every window."""

import base64
import io
import re
from pathlib import Path

from speech import timeline
from speech.audio import SETTINGS
from speech.timeline import Session
from speech.verdict import Row

import numpy as np
import pytest
from PIL import Image

TICKS = timeline.find_ticks((128, 251), None)


def test_ticks_stand_where_librosa_puts_the_frequencies():
    librosa = pytest.importorskip("librosa")
    x, y = timeline.find_ticks((128, 251), SETTINGS)
    bins = librosa.mel_frequencies(n_mels=130, fmax=8000)[1:-1]  # the triangles' centres
    for text, place in y[:-1]:
        assert np.interp(float(text.removesuffix(" Hz")), bins, np.arange(128)) == pytest.approx(
            128 * place - 0.5, abs=0.02
        )
    assert y[-1] == ("8000 Hz", 1)
    assert [text for text, _ in x] == ["0 s", "2 s", "4 s", "6 s", "8 s"]
    assert x[-1][1] == pytest.approx(250 / 251)  # 8 s is frame 250 of 251


def picture(html):
    data = re.search(r"base64,([^\"]+)", html)[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_the_picture_has_low_frequencies_at_the_bottom_and_a_text():
    clip = np.zeros((128, 251), np.float32)
    clip[:20] = 1
    html = timeline.draw_clip('<b>"x"</b>', clip, TICKS, None)
    pixels = picture(html)
    assert pixels.shape == (128, 251, 3)
    assert pixels[-20:].mean() > 200 > 60 > pixels[:-20].mean()
    assert '<b>"x"</b>' not in html and 'alt="Mel spectrogram of &lt;b&gt;' in html


def test_the_overlay_is_orange_towards_depressed_and_blue_away():
    clip = np.full((128, 251), 0.5, np.float32)
    moved = np.zeros((6, 8))
    moved[0, 0], moved[-1, -1] = 0.12, -0.06  # low and early, high and late
    html = timeline.draw_clip("x", clip, TICKS, moved)
    pixels = picture(html)
    red, _, blue = pixels[-1, 0]
    assert red > blue + 100
    red, _, blue = pixels[0, -1]
    assert blue > red + 30
    assert np.ptp(pixels[64, 125]) < 3  # grey where nothing moved it
    assert "12.0 percentage points" in html
    faint = picture(timeline.draw_clip("x", clip, TICKS, moved / 100))
    assert np.ptp(faint[-1, 0]) < 40  # what hardly moved it does not shout


def row(name, p):
    word = "Depressed" if p > 0.6 else "uncertain" if p >= 0.4 else "Not Depressed"
    return Row(name, name.split("_clip_")[0], p, word, "")


def session(rows, *paths, places=None):
    places = places or [(0, 8.0 * i) for i in range(len(rows))]
    return Session(list(map(Path, paths)), "Both", rows, places)


def test_the_timeline_has_a_button_per_window_and_a_player():
    rows = [row(f"x_clip_{8 * n}", n / 20) for n in range(21)]
    html = timeline.draw_timeline(session(rows, "/tmp/x.wav"), 8)
    assert html.count("<button") == 21 and html.count("<audio") == 1
    assert 'data-n="20" data-file="0" data-at="160"' in html and ">2:24<" in html
    assert 'aria-label="0:00, x_clip_0: Not Depressed, score under 0.05"' in html
    assert html.count('tabindex="0"') == 1  # arrow keys go to the others
    assert len(re.findall(r"<span class=\"\"", html)) <= 4  # a phone's ticks


def test_the_timeline_of_clips_has_names_gaps_and_no_player():
    rows = [row("a_clip_0", 0.1), row("a_clip_8", 0.1), row("b_clip_0", 0.9)]
    files = session(
        rows, "a_clip_0.npy", "a_clip_8.npy", "b_clip_0.npy", places=[(0, 0), (1, 0), (2, 0)]
    )
    html = timeline.draw_timeline(files, 8)
    assert "<audio" not in html and ">b_clip_0<" in html and "0:00" not in html
    assert html.count(" gap") == 1
    assert timeline.draw_timeline(session(rows[:1], "a.npy"), 8) == ""


def test_an_equal_result_is_another_timeline():
    """Or Gradio would not call the script, and the window pressed last would stay so."""
    first = session([row("a", 0.1)] * 2, "/a.wav")._replace(csv="/x/1/a.csv")
    again = first._replace(csv="/x/2/a.csv")
    assert timeline.draw_timeline(first, 8) != timeline.draw_timeline(again, 8)


def test_ticks_are_as_wide_as_their_bars():
    """Bars and gaps of all ticks together are those of the timeline, on a phone too."""
    rows = [row(f"{n // 5:02}_clip_{n}", 0.1) for n in range(21)]
    places = [(n, 0.0) for n in range(21)]
    html = timeline.draw_ticks(session(rows, *(f"{r.clip}.npy" for r in rows), places=places))
    for spare, bars, gaps in (
        ("(?:spare)?", "--bars", "--gaps"),
        ("", "--phone-bars", "--phone-gaps"),
    ):
        spans = re.findall(rf'<span class="{spare}" style="(.*?)"', html)
        sums = [sum(int(re.search(f"{name}:(\\d+)", s)[1]) for s in spans) for name in (bars, gaps)]
        assert sums == [21, 4], bars


def test_a_files_name_is_no_markup():
    html = timeline.draw_timeline(session([row("<b>", 0.1)] * 2, "/<b>.wav"), 8)
    assert "<b>" not in html
