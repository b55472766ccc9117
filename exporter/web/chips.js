// SPDX-License-Identifier: Apache-2.0

// The chips above the table: a filter each, which a press removes.

import { byID, el } from '/web/dom.js';
import { spaced } from '/web/format.js';
import { anyRisk, toggled } from '/web/filters.js';
import { risks } from '/web/names.js';

const meanings = Object.fromEntries(risks.map((r) => [r.name, r.meaning]));

// showChips shows the filters; change takes new values of them.
export function showChips(filters, change) {
  byID('chips').replaceChildren(
    ...filters.verdict.map((v) => chip(v, null, () => change({ verdict: toggled(filters.verdict, v) }))),
    ...filters.risk.map((r) => chip(r === anyRisk ? 'any risk' : spaced(r), meanings[r], () => change({ risk: toggled(filters.risk, r) }))));
}

const chip = (label, title, onclick) => el('button', { type: 'button', class: 'chip', title, onclick, 'aria-label': `Remove filter: ${label}` },
  label, el('span', { 'aria-hidden': 'true' }, ' ×'));
