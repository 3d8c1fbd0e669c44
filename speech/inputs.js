// The box for files: what the chooser offers, more files, and what is too much before it is uploaded.
// Gradio calls this with `element` and `trigger`.
const { accept, files, bytes } = element.querySelector("[data-accept]").dataset;

const more = element.querySelector("button");
const find = () => document.querySelector("#files input[type=file]");
const count = () => document.querySelectorAll("#files tr.file").length;

function offer() {
  find()?.setAttribute("accept", accept);
  more.hidden = !count();
}

function check(event, chosen) {
  const size = [...chosen].reduce((sum, file) => sum + file.size, 0);
  const number = count() + chosen.length;
  if (number <= +files && size <= +bytes) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  trigger("select", { index: [number, size] });
}

more.addEventListener("click", () => find().click());
offer();
// Gradio makes the box anew now and then.
new MutationObserver(offer).observe(document.body, { childList: true, subtree: true });
document.addEventListener("change", (event) => {
  if (event.target.matches("#files input[type=file]")) check(event, event.target.files);
}, true);
document.addEventListener("drop", (event) => {
  if (event.target.closest("#files")) check(event, event.dataTransfer.files);
}, true);
