// Filters and sorts the tables of the leaderboard; without it the page shows everything, best first.
const form = document.getElementById("choose");
form.hidden = false;
form.addEventListener("input", () => {
  for (const section of document.querySelectorAll("section")) {
    const fits = ["protocol", "recipe"].every((key) => !form[key].value || form[key].value === section.dataset[key]);
    for (const row of section.querySelectorAll("tbody tr")) row.hidden = form.verified.checked && row.dataset.verified !== "yes";
    section.hidden = !fits || !section.querySelector("tbody tr:not([hidden])");
  }
});
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
