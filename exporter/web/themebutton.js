// SPDX-License-Identifier: Apache-2.0

// The button that changes the theme: as the system has it, light or dark.

import { repaint } from '/web/charts.js';
import { byID, setText } from '/web/dom.js';

const themes = ['auto', 'light', 'dark'];
const current = () => document.documentElement.dataset.theme ?? 'auto';
const show = () => setText(byID('theme'), `Theme: ${current()}`);

function next() {
  const theme = themes[(themes.indexOf(current()) + 1) % themes.length];
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem('theme', theme);
  } catch { /* storage is forbidden: the theme lasts as long as the page */ }
  show();
  repaint();
}

export function startThemeButton() {
  show();
  byID('theme').addEventListener('click', next);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', repaint);
}
