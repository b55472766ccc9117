// SPDX-License-Identifier: Apache-2.0

// One row of the table of connections.

import { columns } from '/web/columns.js';
import { el, setText, setTitle } from '/web/dom.js';
import { clock, spaced, wholeAge } from '/web/format.js';
import { verdicts } from '/web/names.js';
import { ownerParts, ownerText } from '/web/owners.js';
import { unansweredText } from '/web/storytext.js';

const meanings = Object.fromEntries(verdicts.map((v) => [v.name, v.meaning]));
const inTrouble = new Set(verdicts.filter((v) => v.trouble).map((v) => v.name));

// makeRow makes the elements of a row that do not change, and returns them and those that
// fillRow fills.
export function makeRow(row) {
  const cells = {};
  const link = el('a', { href: `?conn=${row.cookie}` });
  const tr = el('tr', { 'data-cookie': row.cookie });
  for (const [name, column] of Object.entries(columns)) {
    const cell = el(name === 'remote' ? 'th' : 'td', { class: `c-${name}${column.number ? ' number' : ''}`, scope: name === 'remote' ? 'row' : null });
    if (name === 'local' || name === 'remote') cell.title = row[name]; // IPv6 may be cut off
    cells[name] = cell;
    tr.append(cell);
  }
  const verdict = el('span');
  cells.verdict.append(el('span', { class: 'dot', 'aria-hidden': 'true' }), verdict);
  const ownerBelow = el('span', { class: 'ownerbelow' }); // where there is no room for the column
  cells.remote.append(link, ownerBelow);
  const countdown = el('span'), fuse = el('span', { class: 'fuse', 'aria-hidden': 'true' });
  cells.gives_up.append(countdown, fuse);
  const process = el('span'), group = el('span', { class: 'muted' });
  cells.owner.append(process, group);
  return { tr, cells, link, verdict, ownerBelow, countdown, fuse, process, group };
}

// fillRow shows a row as it is at the agent's time now.
export function fillRow(elements, row, now) {
  const { tr, cells } = elements;
  if (tr.dataset.verdict !== row.verdict) {
    tr.dataset.verdict = row.verdict;
    setText(elements.verdict, row.verdict);
    cells.verdict.title = meanings[row.verdict] ?? '';
  }
  const ago = (at) => wholeAge((now - at) / 1000);
  setText(cells.unanswered, row.unanswered ? String(row.unanswered) : '–');
  setTitle(cells.unanswered, inTrouble.has(row.verdict) ? unansweredText(row) : '');
  setText(cells.silent, row.heard_at ? ago(row.heard_at) : 'never heard');
  setText(cells.idle, row.data_at ? ago(row.data_at) : '–');
  fillCountdown(elements, row, now);
  setText(cells.state, row.state);
  setText(cells.local, row.local);
  setText(elements.link, row.remote);
  fillOwner(elements, row);
}

function fillOwner(elements, row) {
  const [process, group] = ownerParts(row);
  setText(elements.process, process);
  setText(elements.group, group ? `${process ? ' ' : ''}${group}` : process ? '' : '–');
  setText(elements.ownerBelow, process || group || '–');
  setTitle(elements.cells.owner, ownerText(row));
}

// fillCountdown shows how long the kernel will still wait for the peer. The fuse shows
// which part of the whole silence that is.
function fillCountdown({ cells, countdown, fuse }, row, now) {
  const troubled = inTrouble.has(row.verdict), left = row.gives_up_at - now;
  fuse.hidden = !troubled || !row.gives_up_at;
  if (!row.gives_up_at) {
    setText(countdown, 'never');
    countdown.className = 'muted';
    setTitle(cells.gives_up, '');
    return;
  }
  setText(countdown, left > 0 ? wholeAge(left / 1000) : row.gives_up_latest > now ? 'any moment' : 'overdue');
  countdown.className = troubled ? '' : 'muted';
  const silence = row.gives_up_at - (row.heard_at || now);
  fuse.style.width = `${Math.max(0, Math.min(1, silence > 0 ? left / silence : 0)) * 100}%`;
  setTitle(cells.gives_up, `${clock(row.gives_up_at)}: ${spaced(row.gives_up_by ?? '')}, unless the peer is heard`);
}
