// Before anything is drawn: the theme that was chosen last, if it was another than the system's.
try {
  const chosen = localStorage.getItem("undertow-theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch {
  // no storage: the system's theme
}
