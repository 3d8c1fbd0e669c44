// The timeline: a window's button plays the recording from there and asks for its spectrogram.
// Gradio calls this with `element`, `trigger` and `watch`.
let audio, head, buttons, current;

function light(button, scroll) {
  if (!button || button === current) return;
  current?.setAttribute("aria-pressed", "false");
  if (current) current.tabIndex = -1;
  button.setAttribute("aria-pressed", "true");
  button.tabIndex = 0;
  current = button;
  const strip = button.closest(".strip");
  const place = button.offsetLeft - strip.clientWidth / 2;
  if (scroll && strip.scrollWidth > strip.clientWidth) strip.scrollLeft = place;
}

function follow() {
  const here = buttons.filter(
    (button) => button.dataset.file === audio.dataset.file && +button.dataset.at <= audio.currentTime,
  );
  const button = here[here.length - 1];
  if (!button) return;
  const share = Math.min((audio.currentTime - button.dataset.at) / audio.dataset.seconds, 1);
  head.style.display = "block";
  head.style.left = `${button.offsetLeft + share * button.offsetWidth}px`;
}

function load(file) {
  if (audio.dataset.file === file) return;
  const path = JSON.parse(audio.dataset.paths)[file];
  const root = window.gradio_config?.root ?? "";
  audio.dataset.file = file;
  for (const words of element.querySelectorAll(".unplayable, .gone")) words.hidden = true; // another's
  audio.src = `${root}/gradio_api/file=${encodeURI(path).replaceAll("#", "%23").replaceAll("?", "%3F")}`;
}

function choose(button) {
  light(button, false);
  if (audio && button.dataset.file !== "") {
    load(button.dataset.file);
    audio.currentTime = +button.dataset.at;
    audio.play().catch(() => {});
  }
  trigger("select", { index: +button.dataset.n });
}

function prepare() {
  audio = element.querySelector("audio");
  head = element.querySelector(".head");
  buttons = [...element.querySelectorAll(".bars button")];
  current = null;
  if (!buttons.length) return;
  light(buttons[0], false);
  if (!audio) return;
  load(Object.keys(JSON.parse(audio.dataset.paths))[0]);
  audio.addEventListener("timeupdate", follow);
  audio.onerror = async () => {
    const { src } = audio;
    const { ok = true } = await fetch(src, { method: "HEAD" }).catch(() => ({}));
    if (audio.src === src) element.querySelector(ok ? ".unplayable" : ".gone").hidden = false;
  };
}

element.addEventListener("click", (event) => {
  const button = event.target.closest(".bars button");
  if (button) choose(button);
});
element.addEventListener("keydown", (event) => {
  const at = buttons?.indexOf(event.target) ?? -1;
  const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: buttons?.length - 1 };
  if (at < 0 || !(event.key in places)) return;
  event.preventDefault();
  const button = buttons[Math.max(0, Math.min(places[event.key], buttons.length - 1))];
  light(button, true);
  button.focus();
});
watch("value", prepare);
prepare();
