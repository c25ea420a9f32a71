"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const AT_ONCE = 4;
const SIDE = 64;
// Larger files get no small picture, because browsers decode them slowly.
const MOST_SHOWN = 32 * 1024 * 1024;

const drop = document.getElementById("drop");
const input = document.getElementById("files");
const bar = document.getElementById("bar");
const state = document.getElementById("state");
const csv = document.getElementById("csv");
const table = document.getElementById("answers");

// Each row has the file, its cells, and its answer when it has arrived.
let rows = [];
let waiting = [];
let running = 0;
let notice = "";

function element(name, text = "", kind = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function take(files) {
  const room = facts.mostRows - rows.length;
  notice = files.length > room ? `Only ${facts.mostRows} pictures are listed at a time; the others are left out.` : "";
  for (const file of [...files].slice(0, room)) {
    const line = element("tr");
    const cells = {};
    const names = ["look", "file", "answer", ...(facts.explains ? ["map"] : []), "odds"];
    for (const name of [...names, ...(facts.flag ? ["flag"] : []), "remark"]) {
      cells[name] = element("td", "", name);
      line.append(cells[name]);
    }
    cells.file.textContent = file.name;
    cells.answer.textContent = "…";
    table.tBodies[0].append(line);
    const row = { file, cells, answer: null };
    rows.push(row);
    waiting.push(row);
  }
  show();
  while (running < AT_ONCE && waiting.length) work();
}

async function work() {
  running += 1;
  while (waiting.length) {
    const row = waiting.shift();
    // The browser draws the small picture while the server predicts.
    const [answer] = await Promise.all([ask(row.file), look(row)]);
    row.answer = { ...answer, path: row.file.name };
    fill(row);
    show();
  }
  running -= 1;
}

async function ask(file) {
  if (file.size > facts.mostBytes - 4096) return { error: `larger than the ${facts.mostBytes / 1048576} MB that are accepted` };
  const form = new FormData();
  form.append("files", file);
  try {
    const response = await fetch(facts.explains ? "rows?explain=true" : "rows", { method: "POST", body: form });
    const content = await response.json();
    return response.ok ? content.predictions[0] : { error: content.error };
  } catch (error) {
    return { error: `no response (${error.message}); check that the program is still running and that the file still exists` };
  }
}

async function look(row) {
  if (row.file.size > MOST_SHOWN) return;
  try {
    const whole = await createImageBitmap(row.file);
    const scale = SIDE / Math.max(whole.width, whole.height, SIDE);
    const canvas = element("canvas");
    canvas.width = Math.max(1, Math.round(whole.width * scale));
    canvas.height = Math.max(1, Math.round(whole.height * scale));
    canvas.getContext("2d").drawImage(whole, 0, 0, canvas.width, canvas.height);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", row.file.name);
    whole.close();
    row.cells.look.append(canvas);
  } catch {
    // Browsers cannot show TIFF or damaged files.
  }
}

function fill({ answer, cells }) {
  if (answer.error) {
    cells.answer.textContent = "no prediction";
    cells.answer.classList.add("error");
    cells.remark.textContent = answer.error;
    cells.remark.classList.add("error");
    return;
  }
  cells.answer.textContent = answer.predicted;
  if (answer.overlay_png) {
    const map = element("img");
    map.src = `data:image/png;base64,${answer.overlay_png}`;
    map.alt = `Where the network looked in ${answer.path} for ${answer.predicted}`;
    cells.map.append(map);
  }
  for (const name of facts.classes) {
    const value = answer.probabilities[name];
    const meter = element("meter");
    meter.value = value;
    meter.setAttribute("aria-label", `Probability of ${name}`);
    const line = element("div", "", "odd");
    const shown = element("span", value.toFixed(4), "value");
    shown.dataset.value = value;
    line.append(element("span", name), meter, shown);
    cells.odds.append(line);
  }
  if (facts.flag) {
    cells.flag.dataset.head = `Flagged ${facts.flag}`;
    cells.flag.textContent = answer[facts.flag] ? "yes" : "no";
    if (answer[facts.flag]) cells.flag.classList.add("flag-yes");
  }
  cells.remark.textContent = answer.warning || "";
  cells.remark.classList.add("alert");
}

function show() {
  const done = rows.filter((row) => row.answer).length;
  bar.hidden = table.hidden = rows.length === 0;
  csv.disabled = rows.length === 0 || done < rows.length;
  state.textContent = `${done} of ${rows.length} done. ${notice}`;
}

// A spreadsheet would run a cell that begins with one of these characters.
const guarded = (text) => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);
const cell = (value) => {
  const text = typeof value === "number" ? String(value) : guarded(String(value ?? ""));
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

function download() {
  const flag = facts.flag ? [facts.flag] : [];
  const heads = ["path", "predicted", ...facts.classes.map((name) => `p_${name}`), ...flag, "warning", "error"];
  const lines = rows.map(({ answer }) => [
    answer.path,
    answer.predicted,
    ...facts.classes.map((name) => answer.probabilities?.[name]),
    ...flag.map((name) => answer[name] === undefined ? "" : answer[name] ? "True" : "False"),
    answer.warning,
    answer.error,
  ]);
  const text = [heads, ...lines].map((line) => line.map(cell).join(",") + "\n").join("");
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function clear() {
  rows = [];
  waiting = [];
  notice = "";
  table.tBodies[0].replaceChildren();
  input.value = "";
  show();
}

// Otherwise, the browser would open a picture that was dropped beside the field, in place of this page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
drop.addEventListener("dragover", () => drop.classList.add("over"));
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
window.addEventListener("drop", (event) => {
  drop.classList.remove("over");
  if (event.dataTransfer) take(event.dataTransfer.files);
});
input.addEventListener("change", () => {
  take(input.files);
  input.value = "";
});
csv.addEventListener("click", download);
document.getElementById("clear").addEventListener("click", clear);
