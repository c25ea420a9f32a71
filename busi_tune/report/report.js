"use strict";
const drawn = JSON.parse(document.getElementById("drawn").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const options = {displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false, showTips: false};

// A browser that prints lays the page out after the charts are drawn: these widths fit A4 and US letter.
const printed = {wide: 650, narrow: 315};

function draw(template, printing = false) {
  for (const [name, figure] of Object.entries(drawn.charts)) {
    const place = document.getElementById("chart-" + name);
    if (!place.data) place.textContent = "";
    const wide = place.parentElement.classList.contains("wide");
    const size = printing ? {width: wide ? printed.wide : printed.narrow} : {autosize: true};
    Plotly.react(place, figure.data, {...figure.layout, ...size, template: template}, options);
  }
}

function sort(table, column, ascending) {
  const key = row => {
    const cell = row.cells[column], number = cell.querySelector("data");
    return number ? Number(number.value) : cell.textContent.trim();
  };
  const isNumber = value => typeof value === "number";
  const rows = [...table.tBodies[0].rows].map(row => [key(row), row]);
  rows.sort(([a], [b]) => isNumber(a) && isNumber(b) ? a - b : isNumber(a) - isNumber(b) || String(a).localeCompare(String(b)));
  if (!ascending) rows.reverse();
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = head.closest("table");
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    sort(table, head.cellIndex, ascending);
  });
}

const now = () => draw(dark.matches ? drawn.dark : drawn.light);
now();
dark.addEventListener("change", now);
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
  draw(drawn.light, true);
});
addEventListener("afterprint", now);
document.documentElement.dataset.ready = "yes";
