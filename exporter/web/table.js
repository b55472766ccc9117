// SPDX-License-Identifier: Apache-2.0

// The table of connections. Only the rows that are in sight exist, so that ten
// thousand are as quick as ten; to a screen reader it is a table of all of them.

import { clock, el, evidences, meaning, owner, plural, rank, say, spaced, whole } from '/web/format.js';

const overscan = 8;

// Of each column: its title, and how rows are ordered by it, by what does not change as
// time goes by: the worst first, which where it falls are the largest.
export const columns = {
  verdict: { title: 'Verdict', falls: true, order: (a, b) => rank[a.verdict] - rank[b.verdict] || silence(a) - silence(b) },
  unanswered: { title: 'Unanswered', number: true, falls: true, order: (a, b) => (b.unanswered ?? 0) - (a.unanswered ?? 0) },
  silent: { title: 'Silent', number: true, falls: true, order: (a, b) => (a.heard_at ?? 0) - (b.heard_at ?? 0) },
  idle: { title: 'Idle', number: true, falls: true, order: (a, b) => (a.data_at ?? 0) - (b.data_at ?? 0) },
  gives_up: { title: 'Gives up', number: true, order: (a, b) => (a.gives_up_at || Infinity) - (b.gives_up_at || Infinity) || 0 },
  state: { title: 'State', order: (a, b) => compare(a.state, b.state) },
  local: { title: 'Local', order: (a, b) => compare(end(a, 'local'), end(b, 'local')) },
  remote: { title: 'Remote', order: (a, b) => compare(end(a, 'remote'), end(b, 'remote')) },
  owner: { title: 'Owner', order: (a, b) => compare(said(a), said(b)) },
};

// silence is what `halfopen list` orders by within a verdict: the longest first.
const silence = (r) => (rank[r.verdict] <= rank.suspect ? r.heard_at : r.data_at) ?? 0;
const said = (r) => (r.said ??= owner(r.pid, r.comm, r.group, r.held).join(' ').trim() || '\uffff');

// Ten thousand rows are compared a hundred thousand times: localeCompare takes seconds.
const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

// end is what an address is ordered by: its numbers by value. An end never changes.
function end(r, which) {
  r.ends ??= {};
  return (r.ends[which] ??= r[which].replace(/\d+/g, (n) => n.padStart(5, '0')));
}

const troubled = new Set(['zombie', 'suspect', 'stalled']);

export class Table {
  // on has open(cookie) and sort(column).
  constructor(table, scroll, on) {
    this.scroll = scroll;
    this.on = on;
    this.view = []; // the rows, in order
    this.drawn = new Map(); // by cookie
    this.fresh = new Map(); // when a row got into trouble
    this.now = Date.now();
    this.picked = null; // the row that Tab goes to
    this.heads = {};
    const row = el('tr', { 'aria-rowindex': 1 });
    for (const [name, c] of Object.entries(columns)) {
      const button = el('button', { type: 'button', onclick: () => on.sort(name) }, c.title);
      this.heads[name] = el('th', { scope: 'col', class: `c-${name}${c.number ? ' number' : ''}` }, button);
      row.append(this.heads[name]);
    }
    this.above = el('tr', { 'aria-hidden': 'true' }, el('td'));
    this.below = this.above.cloneNode(true);
    this.body = el('tbody', null, this.above, this.below);
    this.table = table;
    table.append(el('caption', { class: 'unseen' }, 'Connections. Enter opens the story of one.'), el('thead', null, row), this.body);
    scroll.addEventListener('scroll', () => this.draw(), { passive: true });
    scroll.addEventListener('keydown', (e) => this.key(e));
    this.body.addEventListener('click', (e) => this.click(e));
    this.body.addEventListener('focusin', (e) => {
      const cookie = e.target.closest('tr')?.dataset.cookie;
      if (cookie) this.pick(cookie);
    });
    new ResizeObserver(() => this.draw()).observe(scroll);
  }

  // show shows these rows; sort is a column, reversed by a - before it.
  show(view, sort, opened) {
    this.view = view;
    this.opened = opened;
    this.index = null;
    const [column, reversed] = sort.startsWith('-') ? [sort.slice(1), true] : [sort, false];
    for (const [name, th] of Object.entries(this.heads)) {
      if (name === column) th.setAttribute('aria-sort', reversed === Boolean(columns[name].falls) ? 'ascending' : 'descending');
      else th.removeAttribute('aria-sort');
    }
    this.table.setAttribute('aria-rowcount', view.length + 1);
    this.draw();
  }

  get height() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue('--row')) || 30;
  }

  draw() {
    const h = this.height, n = this.view.length;
    const first = Math.max(0, Math.floor(this.scroll.scrollTop / h) - overscan);
    const last = Math.min(n, Math.ceil((this.scroll.scrollTop + this.scroll.clientHeight) / h) + overscan);
    this.above.style.height = `${first * h}px`;
    this.below.style.height = `${(n - last) * h}px`;
    const wanted = new Set();
    for (let i = first; i < last; i++) wanted.add(this.view[i].cookie);
    if (!wanted.has(this.picked)) this.picked = first < last ? this.view[Math.min(last - 1, Math.ceil(this.scroll.scrollTop / h))].cookie : null;
    const focused = this.body.contains(document.activeElement) ? document.activeElement.closest('tr').dataset.cookie : null;
    // The rows that go are taken away last: were the table short for a moment, the
    // browser would scroll.
    let at = this.above;
    for (let i = first; i < last; i++) {
      const r = this.view[i];
      let d = this.drawn.get(r.cookie);
      if (!d) this.drawn.set(r.cookie, d = make(r));
      let next = at.nextSibling;
      while (next.dataset.cookie && !wanted.has(next.dataset.cookie)) next = next.nextSibling;
      if (next !== d.tr) at.after(d.tr);
      at = d.tr;
      d.tr.setAttribute('aria-rowindex', i + 2);
      d.tr.classList.toggle('opened', r.cookie === this.opened);
      d.link.tabIndex = r.cookie === this.picked ? 0 : -1;
      const since = this.fresh.get(r.cookie);
      d.tr.classList.toggle('fresh', since !== undefined && this.now - since < 4000);
      fill(d, r, this.now);
    }
    for (const [cookie, d] of this.drawn) {
      if (wanted.has(cookie)) continue;
      d.tr.remove();
      this.drawn.delete(cookie);
    }
    // What was removed or moved has lost the focus.
    if (focused && !this.body.contains(document.activeElement)) (this.drawn.get(focused)?.link ?? this.scroll).focus({ preventScroll: true });
  }

  // tick lets time go by.
  tick(now) {
    this.now = now;
    for (const [cookie, since] of this.fresh) if (now - since > 4000) this.fresh.delete(cookie);
    this.draw();
  }

  pick(cookie) {
    const before = this.drawn.get(this.picked);
    if (before) before.link.tabIndex = -1;
    this.picked = cookie;
    const d = this.drawn.get(cookie);
    if (d) d.link.tabIndex = 0;
  }

  // focus moves to a row, if it is shown.
  focus(cookie) {
    const i = this.view.findIndex((r) => r.cookie === cookie);
    if (i < 0) {
      this.scroll.focus({ preventScroll: true });
      return;
    }
    const h = this.height, head = this.heads.verdict.offsetHeight;
    const top = i * h, room = this.scroll.clientHeight - head - h;
    if (top < this.scroll.scrollTop) this.scroll.scrollTop = top;
    else if (top > this.scroll.scrollTop + room) this.scroll.scrollTop = top - room;
    this.draw();
    this.pick(cookie);
    this.drawn.get(cookie)?.link.focus({ preventScroll: true });
  }

  click(e) {
    const cookie = e.target.closest('tr')?.dataset.cookie;
    if (!cookie || e.ctrlKey || e.metaKey || e.shiftKey || e.button !== 0) return; // a link can be opened elsewhere
    e.preventDefault();
    if (String(getSelection()) === '') this.on.open(cookie);
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest('thead')) return;
    const page = Math.max(1, Math.floor(this.scroll.clientHeight / this.height) - 2);
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[e.key];
    if (step === undefined || !this.view.length) return;
    e.preventDefault();
    let i = this.view.findIndex((r) => r.cookie === this.picked);
    if (document.activeElement === this.scroll) i -= Math.sign(step); // the first key only gets in
    i = Math.max(0, Math.min(this.view.length - 1, i + step));
    this.focus(this.view[i].cookie);
  }
}

function make(r) {
  const cells = {};
  const link = el('a', { href: `?conn=${r.cookie}` });
  const tr = el('tr', { 'data-cookie': r.cookie });
  for (const [name, c] of Object.entries(columns)) {
    const cell = el(name === 'remote' ? 'th' : 'td', { class: `c-${name}${c.number ? ' number' : ''}`, scope: name === 'remote' ? 'row' : null });
    if (name === 'local' || name === 'remote') cell.title = r[name]; // IPv6 may be cut off
    cells[name] = cell;
    tr.append(cell);
  }
  const dot = el('span', { class: 'dot', 'aria-hidden': 'true' }), word = el('span');
  cells.verdict.append(dot, word);
  const also = el('span', { class: 'also' }); // where there is no room for the column of owners
  cells.remote.append(link, also);
  const left = el('span'), bar = el('span', { class: 'fuse', 'aria-hidden': 'true' });
  cells.gives_up.append(left, bar);
  const who = el('span'), where = el('span', { class: 'muted' });
  cells.owner.append(who, where);
  return { tr, cells, link, also, word, left, bar, who, where };
}

function fill(d, r, now) {
  if (d.tr.dataset.verdict !== r.verdict) {
    d.tr.dataset.verdict = r.verdict;
    say(d.word, r.verdict);
    d.cells.verdict.title = meaning[r.verdict];
  }
  const bad = troubled.has(r.verdict);
  const evidence = bad && r.evidence && r.unanswered ? ` ${evidences[r.evidence][0]}` : '';
  say(d.cells.unanswered, r.unanswered ? String(r.unanswered) : '–');
  if (d.evidence !== evidence + r.unanswered) {
    d.evidence = evidence + r.unanswered;
    d.cells.unanswered.title = evidence ? `${plural(r.unanswered, ...evidences[r.evidence])} unanswered` : '';
  }
  say(d.cells.silent, r.heard_at ? whole((now - r.heard_at) / 1000) : 'never heard');
  say(d.cells.idle, r.data_at ? whole((now - r.data_at) / 1000) : '–');
  countdown(d, r, now, bad);
  say(d.cells.state, r.state);
  say(d.cells.local, r.local);
  say(d.link, r.remote);
  const [who, where] = owner(r.pid, r.comm, r.group, r.held);
  say(d.who, who);
  say(d.also, who || where || '–');
  say(d.where, where ? (who ? ' ' : '') + where : who ? '' : '–');
  const title = `${who} ${where}`.trim();
  if (d.cells.owner.title !== title) d.cells.owner.title = title;
}

// countdown is how long the kernel will still wait; the fuse is how much of the
// silence that takes is left.
function countdown(d, r, now, bad) {
  if (!r.gives_up_at) {
    say(d.left, 'never');
    d.left.className = 'muted';
    d.bar.hidden = true;
    return;
  }
  const left = (r.gives_up_at - now) / 1000;
  say(d.left, left > 0 ? whole(left) : r.gives_up_latest > now ? 'any moment' : 'overdue');
  d.left.className = bad ? '' : 'muted';
  d.bar.hidden = !bad;
  if (bad) {
    const all = r.gives_up_at - (r.heard_at || now);
    d.bar.style.width = `${Math.max(0, Math.min(1, all > 0 ? (r.gives_up_at - now) / all : 0)) * 100}%`;
  }
  if (d.title !== r.gives_up_at) {
    d.title = r.gives_up_at;
    d.cells.gives_up.title = `${clock(r.gives_up_at)}: ${spaced(r.gives_up_by ?? '')}, if nothing is heard`;
  }
}
