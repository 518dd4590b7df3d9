"use strict";
// Search, sort and filter in the browser, of the pages that no server stands behind.

{
  const form = document.getElementById("browse");
  const body = document.querySelector("#atoms tbody");
  const more = document.getElementById("more");
  const STEP = 50;
  const folded = window.ATOM_ROWS.map((row) => `${row.label} ${row.promoted.join(" ")}`.toLowerCase());
  let sort = "atom";
  let down = false;
  let shown = STEP;

  const token = (text) => text.replaceAll(" ", "␣").replace(/[\p{C}]/gu, (c) => JSON.stringify(c).slice(1, -1));
  const number = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

  function cell(row, text, kind) {
    const td = row.insertCell();
    td.textContent = text;
    if (kind) td.className = kind;
    return td;
  }

  function line(found) {
    const row = body.insertRow();
    cell(row, found.atom, "number");
    const link = document.createElement("a");
    link.href = `atom/${found.atom}.html`;
    link.textContent = found.label || "(unlabelled)";
    cell(row, "", "label").append(link);
    const verdict = document.createElement("span");
    verdict.className = "verdict";
    if (["real", "weak", "noise"].includes(found.verdict)) verdict.classList.add(found.verdict);
    verdict.textContent = found.verdict;
    cell(row, "").append(verdict);
    cell(row, found.concept);
    cell(row, number(found.density, 3), "number");
    for (const name of ["coherence", "gain", "detection", "fuzzing", "output"]) cell(row, number(found[name], 2), "number");
    const tokens = cell(row, "", "tokens");
    for (const text of found.promoted) {
      const span = document.createElement("span");
      span.className = "token";
      span.textContent = token(text);
      tokens.append(span, " ");
    }
  }

  function found() {
    const asked = Object.fromEntries(new FormData(form));
    const words = asked.q.toLowerCase().split(/\s+/).filter(Boolean);
    const least = parseFloat(asked.coherence);
    const rows = window.ATOM_ROWS.filter((row, i) => words.every((word) => folded[i].includes(word))
      && (!asked.verdict || row.verdict === asked.verdict) && (!asked.concept || row.concept === asked.concept)
      && (Number.isNaN(least) || (row.coherence !== null && row.coherence >= least)));
    const missing = (value) => value === null || value === undefined || value === "";
    return rows.sort((a, b) => {
      const [x, y] = [a[sort], b[sort]];
      if (missing(x) !== missing(y)) return missing(x) ? 1 : -1;
      const order = typeof x === "string" ? x.localeCompare(y) : x - y;
      return (down ? -order : order) || a.atom - b.atom;
    });
  }

  function show() {
    const rows = found();
    body.replaceChildren();
    rows.slice(0, shown).forEach(line);
    document.getElementById("count").textContent = rows.length === 1 ? "1 atom" : `${rows.length.toLocaleString("en")} atoms`;
    more.hidden = rows.length <= shown;
    for (const link of document.querySelectorAll("[data-sort]")) {
      const here = link.dataset.sort === sort;
      if (here) link.parentElement.setAttribute("aria-sort", down ? "descending" : "ascending");
      else link.parentElement.removeAttribute("aria-sort");
    }
  }

  form.addEventListener("input", () => { shown = STEP; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { shown += 10 * STEP; show(); });
  for (const link of document.querySelectorAll("[data-sort]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const numeric = !["atom", "label", "verdict", "concept"].includes(link.dataset.sort);
      down = link.dataset.sort === sort ? !down : numeric;
      sort = link.dataset.sort;
      show();
    });
  }
  show();
}
