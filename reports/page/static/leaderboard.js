// Filters the tables of the leaderboard; without it the page shows everything, best first.
const form = document.getElementById("choose");
form.hidden = false;
form.addEventListener("input", () => {
  for (const section of document.querySelectorAll("section")) {
    const fits = ["protocol", "recipe"].every((key) => !form[key].value || form[key].value === section.dataset[key]);
    for (const row of section.querySelectorAll("tbody tr")) row.hidden = form.verified.checked && row.dataset.verified !== "yes";
    section.hidden = !fits || !section.querySelector("tbody tr:not([hidden])");
  }
});
