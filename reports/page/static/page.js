"use strict";

// What the page can do beyond being read: theme, filter by method, the runs behind a number. sort.js sorts, curves.js draws.
// Texts from run folders only ever become text nodes; numbers of methods and runs are places in the lists of #data.
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));
const numbers = (text) => (text ? text.split(" ").map(Number) : []);
const charts = [];
const drawCharts = () => charts.forEach((chart) => chart.draw());

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------------------------------------ theme

const themeButton = document.getElementById("theme");

function showTheme() {
  themeButton.textContent = `Theme: ${root.dataset.theme}`;
  drawCharts();
}

themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  root.dataset.theme = { auto: "light", light: "dark", dark: "auto" }[root.dataset.theme] ?? "auto";
  try { localStorage.setItem("cilbench-theme", root.dataset.theme); } catch { /* forbidden: it holds until the page is closed */ }
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);

// ------------------------------------------------------------------------------------------------ filter and runs

const filter = document.getElementById("filter");
const boxes = all("input", filter);
const shown = new Set(data.methods.keys());
const selection = document.getElementById("selection");
const runRows = all("tr[id^=run-]");
let chosen = null;  // the runs behind a number, or null: all of the methods that are shown
let origin = null;  // where that number is

const runOf = (row) => Number(row.id.slice("run-".length));
const isShown = (row) => numbers(row.dataset.methods).every((method) => shown.has(method));

function showRows() {
  for (const row of all("tr[data-methods]")) row.hidden = !isShown(row);
  for (const row of chosen ? runRows : []) {
    row.hidden = !chosen.has(runOf(row));
    row.classList.toggle("chosen", !row.hidden);
  }
  if (!chosen) for (const row of runRows) row.classList.remove("chosen");
  selection.hidden = !chosen;
}

function applyFilter() {
  shown.clear();
  for (const box of boxes) if (box.checked) shown.add(Number(box.value));
  chosen = null;
  filter.querySelector("output").textContent = shown.size < boxes.length ? `${shown.size} of ${boxes.length} shown` : "";
  showRows();
  drawCharts();
}

/** Only the runs behind a number, which is at `from` and reads `text`. */
function showRuns(runs, from, text) {
  chosen = new Set(runs);
  origin = from;
  showRows();
  selection.firstElementChild.textContent = `${count(runs.length, "run")} behind ${text}.`;
  const first = document.getElementById(`run-${runs[0]}`);
  first.closest("details").open = true;
  document.getElementById("runs").scrollIntoView();
  first.tabIndex = -1;
  first.focus({ preventScroll: true });
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

filter.hidden = boxes.length === 0;
filter.addEventListener("change", applyFilter);
filter.addEventListener("click", (event) => {
  const wanted = event.target.dataset.shown;
  if (!wanted) return;
  for (const box of boxes) box.checked = wanted === "all";
  applyFilter();
});
selection.addEventListener("click", ({ target }) => {
  if (target.dataset.selection === "all") { chosen = null; showRows(); }
  if (target.dataset.selection === "back") { origin.scrollIntoView({ block: "center" }); origin.focus({ preventScroll: true }); }
});
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href^='#run-']");
  const behind = link?.closest("[data-runs]");
  if (!behind) return;
  event.preventDefault();
  showRuns(numbers(behind.dataset.runs), behind.closest(".chart")?.querySelector(".plot") ?? link, behind.dataset.of ?? link.textContent);
});

// ------------------------------------------------------------------------------------------------ what a point says

const MANY = 8;  // runs that a point names one by one

function runList(cell, point) {
  const links = cell.runs.slice(0, MANY).map((run) => element("a", { href: `#run-${run}`, textContent: data.runs[run][0] }));
  const more = cell.runs.length - MANY;
  if (more > 0) links.push(element("a", { href: `#run-${cell.runs[0]}`, textContent: `and ${more} more` }));
  const list = element("dd", {}, ...links);
  list.dataset.runs = cell.runs.join(" ");
  list.dataset.of = headline(cell, point);
  return list;
}

const distinct = (runs, column) => [...new Set(runs.map((run) => data.runs[run][column]))].sort((a, b) => a - b);
const percent = (value) => `${value.toFixed(2)} %`;

function facts(section, cell, point) {
  if (point.source) return [["Published", `at ${point.x} MB`], ["Source", point.source]];
  const budget = section.budgets[cell.budget];
  const named = [["Budget", `${budget.text} = ${budget.mb} MB, ${budget.bytes.toLocaleString("en")} B`]];
  if (point.seen !== undefined) named.push(["Classes seen", point.seen]);
  if (cell.head) named.push(["Head", cell.head]);
  if (cell.n === 0) return cell.reason ? [...named, ["Reason", cell.reason]] : named;
  named.push(["n", cell.n]);
  if (cell.runs.length) {
    named.push(["Seeds", distinct(cell.runs, 1).join(", ")], ["Orders", distinct(cell.runs, 2).join(", ")]);
  }
  return named;
}

function headline(cell, point) {
  if (cell.n === 0) return `No result: ${cell.status}`;
  if (point.source) return `${percent(point.mean)} (published)`;
  return percent(point.mean) + (point.low === null ? "" : ` [${point.low.toFixed(2)}, ${point.high.toFixed(2)}]`);
}

const named = (cell) => element("b", {}, swatches[cell.method].cloneNode(true), data.methods[cell.method].name);

/** What the pointer is on, and in a line each what lies under the same marker. */
function describe(section, point, others) {
  const { cell } = point;
  const list = element("dl");
  for (const [key, value] of facts(section, cell, point)) {
    list.append(element("dt", { textContent: key }), element("dd", { textContent: value }));
  }
  if (cell.runs.length) list.append(element("dt", { textContent: cell.runs.length > 1 ? "Runs" : "Run" }), runList(cell, point));
  return element("div", { className: "cell" }, named(cell),
    element("div", { className: "value", textContent: headline(cell, point) }), list,
    ...others.map((other) => element("div", { className: "also" }, named(other.cell), headline(other.cell, other))));
}

// ------------------------------------------------------------------------------------------------ copying

for (const button of all("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected: press Ctrl+C";
  });
}
