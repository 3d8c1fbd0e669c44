// The box for files: what the chooser offers, and what is too much said before it is uploaded.
// Gradio calls this with `element` and `trigger`.
const { accept, files, bytes } = element.querySelector("[data-accept]").dataset;

function offer() {
  document.querySelector("#files input[type=file]")?.setAttribute("accept", accept);
}

function check(event, chosen) {
  const size = [...chosen].reduce((sum, file) => sum + file.size, 0);
  if (chosen.length <= +files && size <= +bytes) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  trigger("select", { index: [chosen.length, size] });
}

offer();
// Gradio makes the box anew now and then.
new MutationObserver(offer).observe(document.body, { childList: true, subtree: true });
document.addEventListener("change", (event) => {
  if (event.target.matches("#files input[type=file]")) check(event, event.target.files);
}, true);
document.addEventListener("drop", (event) => {
  if (event.target.closest("#files")) check(event, event.dataTransfer.files);
}, true);
