"use strict";
// Both texts as they are generated. Without scripts the form is sent as a whole and answered by a page.

const wheel = document.getElementById("wheel");
const halt = document.getElementById("stop");
const said = wheel && wheel.querySelector("[role=status]");
let running = null;

function show(id, prompt, text) {
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = prompt;
  document.getElementById(id).replaceChildren(given, text);
}

function told(event, prompt) {
  if (event.kind === "strength") {
    const line = document.getElementById("strength");
    line.textContent = `α ${event.alpha.join(", ")} ${line.dataset.unit}; KL ${event.kl.toFixed(2)} nats on the next token.`;
  } else if (event.kind === "plain" || event.kind === "steered") {
    show(event.kind, prompt, event.text);
  } else if (event.kind === "effects") {
    const on = event.on === null ? "–" : event.on.toFixed(2);
    document.getElementById("effects").textContent =
      `On target: ${on} nats on ${event.on_examples} of its examples. Off target: ${event.off.toFixed(2)} nats in neutral contexts.`;
  } else if (event.kind === "error") {
    said.textContent = event.text;
  } else if (event.kind === "end") {
    said.textContent = event.cut ? "Cut short." : "Done.";
  }
}

async function run() {
  const fields = new URLSearchParams(new FormData(wheel));
  const prompt = fields.get("prompt");
  running = new AbortController();
  halt.hidden = false;
  for (const id of ["plain", "steered", "strength", "effects"]) document.getElementById(id).replaceChildren();
  try {
    const response = await fetch("/steer/stream", { method: "POST", body: fields, signal: running.signal });
    if (!response.ok) {
      said.textContent = (await response.json()).error;
      return;
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) told(JSON.parse(line), prompt);
    }
  } catch (error) {
    said.textContent = error.name === "AbortError" ? "Stopped." : String(error);
  } finally {
    running = null;
    halt.hidden = true;
  }
}

if (wheel) {
  wheel.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running === null) run();
  });
  halt.addEventListener("click", () => running && running.abort());
}
