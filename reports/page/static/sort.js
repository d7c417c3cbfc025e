"use strict";

// Sorts a table by the column whose head is clicked: numbers the largest first, texts by the alphabet, then the other way.
const byText = new Intl.Collator("en", { numeric: true }).compare;

function valueOf(cell) {
  if (cell.dataset.sort !== undefined) return cell.dataset.sort;
  const text = cell.textContent;
  return text === "–" ? "" : text;
}

function sortBy(table, heading) {
  const numeric = heading.classList.contains("number");
  const first = numeric ? "descending" : "ascending";
  const order = heading.getAttribute("aria-sort") === first ? { ascending: "descending", descending: "ascending" }[first] : first;
  const sign = order === "ascending" ? 1 : -1;
  const keyed = Array.from(table.tBodies[0].rows, (row) => [valueOf(row.cells[heading.cellIndex]), row]);
  keyed.sort(([x], [y]) => {
    if (x === "" || y === "") return (x === "") - (y === "");  // what has no value stays at the end
    return sign * (numeric ? Number(x) - Number(y) : byText(x, y));
  });
  for (const th of table.tHead.rows[0].cells) th.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", order);
  for (const [, row] of keyed) row.classList.remove("budget-break");
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (heading) sortBy(table, heading);
  });
}
