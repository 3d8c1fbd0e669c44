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
TIMELINE_JS = (FOLDER / "timeline.js").read_text(encoding="utf-8")
INPUTS_JS = (FOLDER / "inputs.js").read_text(encoding="utf-8")
WORDS_JS = f"const texts = {json.dumps(words.translations())};\n"
WORDS_JS += (FOLDER / "words.js").read_text(encoding="utf-8")
# On a phone the card lies below what was clicked: show it when it says something new.
SCROLL_JS = """element.setAttribute("aria-live", "polite");
watch("value", () => {
  const card = document.getElementById("card"), changed = element.querySelector("[data-show]");
  const top = card.getBoundingClientRect().top;
  const far = changed && (top < 0 || top > innerHeight * 0.3);
  if (far) setTimeout(() => card.scrollIntoView(), 150); // once the page has its new length
});"""
MICROPHONE_JS = """(async () => {
  const asked = navigator.permissions?.query({ name: "microphone" }).catch(() => null);
  const allowed = (await asked) ?? {};
  async function look() {
    const devices = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
    const found = devices.some((device) => device.kind === "audioinput");
    element.querySelector("p").hidden = found && allowed.state !== "denied";
  }
  allowed.onchange = look;
  look();
})();"""
