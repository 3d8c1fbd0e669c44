// On a phone the card lies below what was clicked: show it when it says something new.
// Gradio calls this with `element` and `watch`.
element.setAttribute("aria-live", "polite");
watch("value", () => {
  const card = document.getElementById("card"), changed = element.querySelector("[data-show]");
  const top = card.getBoundingClientRect().top;
  const far = changed && (top < 0 || top > innerHeight * 0.3);
  if (far) setTimeout(() => card.scrollIntoView(), 150); // once the page has its new length
});
