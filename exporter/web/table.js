// SPDX-License-Identifier: Apache-2.0

// The table of connections. Only the rows in sight are elements of the page, so that ten
// thousand are as fast as ten; a screen reader is told of all of them.

import { columns } from '/web/columns.js';
import { el } from '/web/dom.js';
import { fillRow, makeRow } from '/web/tablerow.js';

const overscan = 8; // rows above and below those in sight
const recentFor = 4000; // ms; see .recent in the style sheet

export class Table {
  // handlers has open(cookie), for a press on a row, and sort(column).
  constructor(table, scroll, handlers) {
    this.scroll = scroll;
    this.handlers = handlers;
    this.view = []; // the rows, in order
    this.elements = new Map(); // of the rows in sight, by cookie: see makeRow
    this.recent = new Map(); // when a row became a suspect, or worse, by cookie
    this.now = Date.now();
    this.tabStop = null; // the cookie of the row that the Tab key goes to
    this.heads = {};
    const row = el('tr', { 'aria-rowindex': 1 });
    for (const [name, column] of Object.entries(columns)) {
      const button = el('button', { type: 'button', onclick: () => handlers.sort(name) }, column.title);
      this.heads[name] = el('th', { scope: 'col', class: `c-${name}${column.number ? ' number' : ''}` }, button);
      row.append(this.heads[name]);
    }
    this.above = el('tr', { 'aria-hidden': 'true' }, el('td'));
    this.below = this.above.cloneNode(true);
    this.body = el('tbody', null, this.above, this.below);
    this.table = table;
    table.append(el('caption', { class: 'visually-hidden' }, 'Connections. Press Enter to open the story of one.'), el('thead', null, row), this.body);
    scroll.addEventListener('scroll', () => this.draw(), { passive: true });
    scroll.addEventListener('keydown', (e) => this.onKey(e));
    this.body.addEventListener('click', (e) => this.onClick(e));
    this.body.addEventListener('focusin', (e) => {
      const cookie = e.target.closest('tr')?.dataset.cookie;
      if (cookie) this.setTabStop(cookie);
    });
    new ResizeObserver(() => this.draw()).observe(scroll);
  }

  // show shows these rows. sort is the column that they are ordered by, with a minus sign
  // before it if in reverse; the row of the open story is marked.
  show(view, sort, openCookie) {
    this.view = view;
    this.openCookie = openCookie;
    const sorted = sort.replace('-', ''), reverse = sort.startsWith('-');
    for (const [name, head] of Object.entries(this.heads)) {
      if (name !== sorted) head.removeAttribute('aria-sort');
      else head.setAttribute('aria-sort', Boolean(columns[name].descending) !== reverse ? 'descending' : 'ascending');
    }
    this.table.setAttribute('aria-rowcount', view.length + 1);
    this.draw();
  }

  // markRecent highlights a row for a while; clearRecent ends that of all.
  markRecent(cookie, now) { this.recent.set(cookie, now); }

  clearRecent() { this.recent.clear(); }

  get rowHeight() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue('--row')) || 30;
  }

  draw() {
    const height = this.rowHeight, n = this.view.length;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / height) - overscan);
    const last = Math.min(n, Math.ceil((this.scroll.scrollTop + this.scroll.clientHeight) / height) + overscan);
    this.above.style.height = `${first * height}px`;
    this.below.style.height = `${(n - last) * height}px`;
    const inSight = new Set();
    for (let i = first; i < last; i++) inSight.add(this.view[i].cookie);
    if (!inSight.has(this.tabStop)) this.tabStop = first < last ? this.view[Math.min(last - 1, Math.ceil(this.scroll.scrollTop / height))].cookie : null;
    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest('tr').dataset.cookie : null;
    // Rows that are no longer in sight are removed last: a table that is short for a
    // moment would make the browser scroll.
    let previous = this.above;
    for (let i = first; i < last; i++) previous = this.drawRow(this.view[i], i, previous, inSight);
    for (const [cookie, { tr }] of this.elements) {
      if (inSight.has(cookie)) continue;
      tr.remove();
      this.elements.delete(cookie);
    }
    // An element that was removed or moved has lost the focus.
    if (focused && !this.body.contains(document.activeElement)) (this.elements.get(focused)?.link ?? this.scroll).focus({ preventScroll: true });
  }

  // drawRow puts the element of a row, the i-th of the view, after the previous one, and
  // returns it.
  drawRow(row, i, previous, inSight) {
    let elements = this.elements.get(row.cookie);
    if (!elements) this.elements.set(row.cookie, elements = makeRow(row));
    const { tr, link } = elements;
    let next = previous.nextSibling;
    while (next.dataset.cookie && !inSight.has(next.dataset.cookie)) next = next.nextSibling;
    if (next !== tr) previous.after(tr);
    tr.setAttribute('aria-rowindex', i + 2);
    tr.classList.toggle('opened', row.cookie === this.openCookie);
    link.tabIndex = row.cookie === this.tabStop ? 0 : -1;
    const since = this.recent.get(row.cookie);
    tr.classList.toggle('recent', since !== undefined && this.now - since < recentFor);
    fillRow(elements, row, this.now);
    return tr;
  }

  // tick draws the rows in sight as they are at the agent's time now.
  tick(now) {
    this.now = now;
    for (const [cookie, since] of this.recent) if (now - since > recentFor) this.recent.delete(cookie);
    this.draw();
  }

  setTabStop(cookie) {
    const before = this.elements.get(this.tabStop);
    if (before) before.link.tabIndex = -1;
    this.tabStop = cookie;
    const elements = this.elements.get(cookie);
    if (elements) elements.link.tabIndex = 0;
  }

  // focus scrolls to a row and gives it the focus; to the table, if it has no such row.
  focus(cookie) {
    const i = this.view.findIndex((row) => row.cookie === cookie);
    if (i < 0) {
      this.scroll.focus({ preventScroll: true });
      return;
    }
    const height = this.rowHeight, head = this.heads.verdict.offsetHeight;
    const top = i * height, room = this.scroll.clientHeight - head - height;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top > this.scroll.scrollTop + room) this.scroll.scrollTop = top - room;
    this.draw();
    this.setTabStop(cookie);
    this.elements.get(cookie)?.link.focus({ preventScroll: true });
  }

  onClick(e) {
    const cookie = e.target.closest('tr')?.dataset.cookie;
    if (!cookie || e.ctrlKey || e.metaKey || e.shiftKey || e.button !== 0) return; // the browser opens the link elsewhere
    e.preventDefault();
    if (String(getSelection()) === '') this.handlers.open(cookie);
  }

  onKey(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest('thead')) return;
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.rowHeight) - 2);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[e.key];
    if (step === undefined || !this.view.length) return;
    e.preventDefault();
    let i = this.view.findIndex((row) => row.cookie === this.tabStop);
    if (document.activeElement === this.scroll) i -= Math.sign(step); // the first key enters the table
    i = Math.max(0, Math.min(this.view.length - 1, i + step));
    this.focus(this.view[i].cookie);
  }
}
