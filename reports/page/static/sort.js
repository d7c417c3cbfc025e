// Sorts a table by the column whose head is clicked: the largest first, then the smallest.
for (const table of document.querySelectorAll("table[data-sortable]")) {
  table.tHead.addEventListener("click", (event) => {
    const heading = event.target.closest("th");
    if (!heading) return;
    const up = heading.getAttribute("aria-sort") === "descending";
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[heading.cellIndex].dataset.sort ?? row.cells[heading.cellIndex].textContent;
    const rows = [...table.tBodies[0].rows].sort((a, b) => key(a).localeCompare(key(b), "en", { numeric: true }));
    if (heading.classList.contains("number")) rows.sort((a, b) => (parseFloat(key(a)) || 0) - (parseFloat(key(b)) || 0));
    table.tBodies[0].append(...(up ? rows : rows.reverse()));
  });
}
