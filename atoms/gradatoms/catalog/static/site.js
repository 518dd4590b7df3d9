"use strict";
// Copy buttons, the values of sliders, and a word while a form is at work. Every page works without.

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = button.parentElement.querySelector("code").textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.parentElement.querySelector("code"));
      button.textContent = "Press Ctrl-C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

for (const range of document.querySelectorAll(".slider input[type=range]")) {
  const output = range.parentElement.querySelector("output");
  const show = () => { output.textContent = Number(range.value).toFixed(2); };
  range.addEventListener("input", show);
  show();
}

for (const form of document.querySelectorAll("form[data-busy]")) {
  form.addEventListener("submit", () => {
    form.querySelector("[role=status]").textContent = form.dataset.busy + " …";
  });
}

for (const note of document.querySelectorAll("[data-measuring]")) {
  const ask = async () => {
    try {
      const state = await (await fetch("/curves.json")).json();
      if (!state.running) { location.reload(); return; }
      note.textContent = `Measuring curves: ${state.done} of ${state.total} done.`;
    } catch { /* the server has ended */ }
    setTimeout(ask, 2000);
  };
  setTimeout(ask, 2000);
}
