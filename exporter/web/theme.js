// SPDX-License-Identifier: Apache-2.0
// Runs before anything is drawn, so that a dark page does not begin with a white flash.
try {
  const theme = localStorage.getItem('theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch { /* storage may be forbidden: the system's theme, then */ }
