// SPDX-License-Identifier: Apache-2.0
// Sets the theme before the browser draws anything, so that a dark page does not begin
// with a white flash.
try {
  const theme = localStorage.getItem('theme');
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch { /* storage is forbidden: the system's theme applies */ }
