// Verdicts, the notice and where help is, in the visitor's language.
// Gradio calls this with `element`; what words.py has stands before it, as `texts`.
const wanted = navigator.languages.flatMap((name) => [name, name.split("-")[0]]);
const language = wanted.find((name) => name in texts) ?? "en";

function translate() {
  for (const part of document.querySelectorAll("[data-word]:not([lang])")) {
    part.lang = language;
    part.innerHTML = texts[language][part.dataset.word];
  }
}

if (language !== "en") {
  translate();
  // Gradio changes what stands there in its place, and takes our mark away.
  const changes = { childList: true, subtree: true, attributeFilter: ["lang", "data-word"] };
  new MutationObserver(translate).observe(document.body, changes);
}
