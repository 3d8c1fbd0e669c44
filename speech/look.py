"""The page's look: Gradio's theme, the style sheet, and the scripts of its own parts."""

import json
from pathlib import Path

from speech import words

import gradio as gr

FOLDER = Path(__file__).parent
CSS = FOLDER / "page.css"
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **FONTS).set(
    button_primary_background_fill="*primary_600",  # contrasts of 4.5:1 and more
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    color_accent="*primary_600",
    link_text_color_dark="*secondary_400",
)
CARD_JS, INPUTS_JS, MICROPHONE_JS, TIMELINE_JS = (
    (FOLDER / f"{name}.js").read_text(encoding="utf-8")
    for name in ("card", "inputs", "microphone", "timeline")
)
WORDS_JS = f"const texts = {json.dumps(words.translations())};\n"
WORDS_JS += (FOLDER / "words.js").read_text(encoding="utf-8")
