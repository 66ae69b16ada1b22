// Runs before the page is drawn, so that nobody is dazzled by the wrong theme.
"use strict";
{
  let theme = null;
  try {
    theme = localStorage.getItem("networkdb-theme");
  } catch {
    // A browser that keeps nothing shows the theme of the system.
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
}
