// Shows a sentence where there is no microphone, or none that the page may use.
// Gradio calls this with `element`.
(async () => {
  const asked = navigator.permissions?.query({ name: "microphone" }).catch(() => null);
  const allowed = (await asked) ?? {};
  async function look() {
    const devices = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
    const found = devices.some((device) => device.kind === "audioinput");
    element.querySelector("p").hidden = found && allowed.state !== "denied";
  }
  allowed.onchange = look;
  look();
})();
