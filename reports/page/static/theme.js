// In the head, so that nothing is painted in the wrong colours first. Storage may be forbidden: then the system decides.
try {
  document.documentElement.dataset.theme = localStorage.getItem("cilbench-theme") || "auto";
} catch {
  document.documentElement.dataset.theme = "auto";
}
