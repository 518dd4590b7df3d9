"use strict";
// Plots by Plotly, from data that stands in the page or is asked for. Labels are text: Plotly's markup is taken out of them.

const CALM = { displayModeBar: false, responsive: true };
const LAYOUT = { margin: { l: 48, r: 12, t: 12, b: 44 }, font: { family: "system-ui, sans-serif", size: 12 }, paper_bgcolor: "#fff", plot_bgcolor: "#fff" };
const VERDICTS = { real: "#2b6cb0", weak: "#b7791f", noise: "#a0aec0" };
const COLOURS = ["#2b6cb0", "#b7791f", "#2f855a", "#c53030", "#6b46c1", "#319795", "#d53f8c", "#975a16", "#2c5282", "#9b2c2c"];

const literal = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

for (const place of document.querySelectorAll("[data-bars]")) {
  const { edges, counts } = JSON.parse(place.dataset.bars);
  const middles = counts.map((_, i) => (edges[i] + edges[i + 1]) / 2);
  Plotly.newPlot(place, [{ type: "bar", x: middles, y: counts, marker: { color: "#2b6cb0" } }],
    { ...LAYOUT, bargap: 0.05, xaxis: { title: { text: place.dataset.x } }, yaxis: { title: { text: place.dataset.y } } }, CALM);
}

for (const place of document.querySelectorAll("[data-values]")) {
  Plotly.newPlot(place, [{ type: "histogram", x: JSON.parse(place.dataset.values), marker: { color: "#2b6cb0" } }],
    { ...LAYOUT, bargap: 0.05, xaxis: { title: { text: place.dataset.x } }, yaxis: { title: { text: place.dataset.y } } }, CALM);
}

for (const place of document.querySelectorAll("[data-curve]")) {
  const curve = JSON.parse(place.dataset.curve);
  const line = (name, y, colour, more) => ({ name, x: curve.kl, y, mode: "lines+markers", line: { color: colour }, ...more });
  const strengths = curve.alpha.map((alpha) => `α ${alpha.toFixed(3)} ‖h‖`);
  const lines = [
    line("gain on its examples", curve.gain, "#2b6cb0", { text: strengths, hovertemplate: "%{y:.2f} nats at %{x:.2f}, %{text}" }),
    line("KL off target", curve.off_target, "#c53030"),
    line("perplexity (right)", curve.perplexity_ratio, "#718096", { yaxis: "y2", line: { color: "#718096", dash: "dot" } }),
  ];
  Object.entries(curve.baselines).forEach(([name, found], i) => lines.push({
    name: `gain of ${name.replaceAll("_", " ")}`, x: found.kl, y: found.gain, mode: "lines", line: { color: COLOURS[i + 3], width: 1 },
  }));
  if (curve.asked) lines.push({ name: "gain when asked in words", x: [curve.asked.kl], y: [curve.asked.gain], mode: "markers", marker: { symbol: "x", color: "#1a202c", size: 9 } });
  const shapes = curve.safe_kl ? [{ type: "rect", xref: "x", yref: "paper", x0: curve.kl[0], x1: curve.safe_kl, y0: 0, y1: 1, fillcolor: "#2f855a", opacity: 0.08, line: { width: 0 } }] : [];
  Plotly.newPlot(place, lines, {
    ...LAYOUT, shapes, legend: { orientation: "h", y: 1.2 }, margin: { ...LAYOUT.margin, r: 56, t: 70 },
    xaxis: { type: "log", title: { text: "effect on neutral prompts, nats a token" } }, yaxis: { title: { text: "nats" } },
    yaxis2: { title: { text: "times the plain perplexity" }, overlaying: "y", side: "right", rangemode: "tozero", showgrid: false },
  }, CALM);
}

const map = document.querySelector("[data-map]");
const colour = document.getElementById("colour");
let atoms = null;

function groups() {
  const by = colour.value;
  const found = new Map();
  atoms[by].forEach((name, i) => { found.set(name, [...(found.get(name) || []), i]); });
  const names = [...found.keys()].sort((a, b) => found.get(b).length - found.get(a).length);
  return names.map((name, n) => ({
    type: "scatter", mode: "markers", name: literal(name || "none"),
    x: found.get(name).map((i) => atoms.x[i]), y: found.get(name).map((i) => atoms.y[i]),
    customdata: found.get(name).map((i) => atoms.atom[i]),
    text: found.get(name).map((i) => `${atoms.atom[i]} ${literal(atoms.label[i] || "(unlabelled)")}`),
    hovertemplate: "%{text}<extra></extra>",
    marker: { size: 7, opacity: 0.8, color: by === "verdict" ? VERDICTS[name] || "#a0aec0" : COLOURS[n % COLOURS.length] },
  }));
}

function draw(range) {
  Plotly.react(map, groups(), {
    ...LAYOUT, dragmode: "zoom", hovermode: "closest", showlegend: true, uirevision: "map",
    xaxis: { visible: false, range: range ? range[0] : [-1.05, 1.05] }, yaxis: { visible: false, range: range ? range[1] : [-1.05, 1.05] },
  }, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["toImage", "lasso2d", "select2d"] });
  map.dataset.drawn = String(atoms.atom.length);
}

async function look(range) {
  const box = range ? `?x0=${range[0][0]}&x1=${range[0][1]}&y0=${range[1][0]}&y1=${range[1][1]}` : "";
  atoms = window.ATOM_MAP || await (await fetch(map.dataset.map + box)).json();
  draw(range);
}

if (map && window.Plotly) {
  look(null).then(() => {
    map.on("plotly_click", (event) => {
      const row = event.points[0].customdata;
      location.href = map.dataset.page ? map.dataset.page.replace("N", row) : `/atom/${row}`;
    });
    map.on("plotly_relayout", (change) => {
      if (atoms.total === undefined || atoms.total <= atoms.atom.length || !("xaxis.range[0]" in change)) return;
      look([[change["xaxis.range[0]"], change["xaxis.range[1]"]], [change["yaxis.range[0]"], change["yaxis.range[1]"]]]);
    });
  });
  colour.addEventListener("change", () => draw(null));
}
