// SPDX-License-Identifier: Apache-2.0

// The story of one connection: its timeline, its settings and risks, and in the words of
// `halfopen explain` what it is doing, and what to do about it.

import { el, fetchJSON, setText } from '/web/dom.js';
import { endpoint } from '/web/format.js';
import { verdicts } from '/web/names.js';
import { ownership } from '/web/owners.js';
import { factsOf, sections } from '/web/storyparts.js';
import { deathText } from '/web/storytext.js';
import { drawTimeline } from '/web/timeline.js';

const meanings = Object.fromEntries(verdicts.map((v) => [v.name, v.meaning]));

// The story is fetched again at this interval, or sooner when the row has changed.
const interval = 5000, changedInterval = 1500; // ms

// coversPage is where the story covers the whole page: see the style sheet.
const coversPage = matchMedia('(max-width: 740px)');

export class Story {
  // handlers has now(), the agent's time; findDeath(cookie); close(), for the user's
  // request; and closed(cookie), which takes the focus.
  constructor(box, handlers) {
    this.box = box;
    this.handlers = handlers;
    this.cookie = ''; // of the connection that is shown; '': none
    this.fetchedAt = 0;
    this.fetching = 0; // requests under way
    this.resizes = new ResizeObserver(() => this.drawTimeline());
    coversPage.addEventListener('change', () => this.setInert());
  }

  // show shows a connection; with an empty cookie, none.
  show(cookie) {
    if (cookie === this.cookie) return;
    const before = this.cookie, focused = this.box.contains(document.activeElement);
    this.cookie = cookie;
    this.connection = null; // as the API has it; null: not fetched yet
    this.end = null; // once it is gone: its death, if known, or the API's error
    this.parts = {}; // the elements that are shown, by name
    this.ticking = []; // elements whose text changes with the time: [element, text(now)]
    this.fetchedAt = 0;
    this.resizes.disconnect();
    this.box.hidden = !cookie;
    this.setInert();
    if (cookie) this.open();
    else if (focused) this.handlers.closed(before);
  }

  open() {
    this.title = el('h2', { id: 'storytitle', tabindex: -1 }, 'Connection ', this.cookie);
    this.badge = el('span', { class: 'badge' });
    this.banner = el('p', { class: 'banner', role: 'status', hidden: true });
    this.content = el('div', null, el('p', { class: 'muted' }, 'Loading…'));
    this.body = el('div', { class: 'body', tabindex: 0, role: 'region', 'aria-labelledby': 'storytitle' }, this.banner, this.content);
    this.box.replaceChildren(
      el('div', { class: 'head' }, this.title, this.badge, el('span', { class: 'grow' }),
        el('button', { type: 'button', class: 'quiet close', 'aria-label': 'Close the story', onclick: () => this.leave() }, '×')),
      this.body);
    this.title.focus({ preventScroll: true });
    this.fetch();
  }

  // setInert keeps the focus from what the story covers.
  setInert() {
    document.body.classList.toggle('storyopen', Boolean(this.cookie));
    for (const e of document.querySelectorAll('body > .skip, body > header, body > main')) e.inert = Boolean(this.cookie) && coversPage.matches;
  }

  leave() {
    if (this.cookie) this.handlers.close();
  }

  // rowChanged and rowGone take the cookie of a row of the stream. A row can also be gone
  // because the agent left it out: whether the connection is, the API knows.
  rowChanged(cookie) {
    if (cookie !== this.cookie) return;
    this.changed = true;
    this.end = null;
    this.banner.hidden = true;
  }

  rowGone(cookie) {
    if (cookie === this.cookie && !this.end) this.fetch();
  }

  // died takes a death of the stream.
  died(death) {
    if (death.cookie !== this.cookie) return;
    this.end = { death };
    this.showEnd();
  }

  // tick shows the time, and fetches the story again when it is due.
  tick() {
    if (!this.cookie) return;
    const elapsed = Date.now() - this.fetchedAt;
    if (!this.end && !this.fetching && elapsed > (this.changed ? changedInterval : interval)) this.fetch();
    if (this.end && !this.end.death) this.showEnd();
    this.showTime();
  }

  async fetch() {
    const cookie = this.cookie;
    this.fetchedAt = Date.now();
    this.changed = false;
    this.fetching++;
    let error = 'The agent does not answer.';
    try {
      const { ok, status, body } = await fetchJSON(`/api/v1/connections/${cookie}`);
      if (cookie !== this.cookie || this.end) return;
      if (ok) {
        this.connection = body;
        this.fill();
        return;
      }
      error = body.error;
      if (status === 404) {
        this.end = { error };
        this.showEnd();
        return;
      }
    } catch { /* the agent does not answer, or something else does */ } finally { this.fetching--; }
    if (cookie === this.cookie && !this.connection) this.content.replaceChildren(el('p', { class: 'muted' }, error));
  }

  // showEnd says how the connection ended, once that is known.
  showEnd() {
    this.end.death ??= this.handlers.findDeath(this.cookie);
    const { death, error } = this.end;
    this.banner.hidden = false;
    setText(this.banner, death ? deathText(death) : this.connection ? 'The connection has ended.' : error);
    if (!this.connection) this.content.replaceChildren();
    this.box.dataset.verdict = 'dead';
    setText(this.badge, 'dead');
  }

  fill() {
    const c = this.connection, verdict = c.verdict ?? '';
    setText(this.title, `${endpoint(c.local)} → ${endpoint(c.remote)}`);
    setText(this.badge, verdict || c.state);
    this.badge.title = meanings[verdict] ?? '';
    this.box.dataset.verdict = verdict;
    this.timeline ??= el('figure', { class: 'timeline' });
    this.resizes.observe(this.timeline);
    const tick = (e, text) => {
      this.ticking.push([e, text]);
      return e;
    };
    const now = () => this.handlers.now();
    this.put({ ...factsOf(c, ownership(c), tick, now), timeline: this.timeline, ...sections(c, tick, now) });
    this.showTime();
  }

  // put shows these parts in place of those that were shown; but a part in which the user
  // has the focus, or has selected text, stays as it is.
  put(parts) {
    const top = this.body.scrollTop, selection = getSelection();
    const inUse = (e) => e.contains(document.activeElement) || (!selection.isCollapsed && selection.containsNode(e, true));
    if (!Object.keys(this.parts).length) this.content.replaceChildren();
    let previous = null;
    for (const [name, part] of Object.entries(parts)) {
      const old = this.parts[name];
      let shown = part;
      if (old && (old === part || inUse(old))) shown = old;
      else {
        old?.remove();
        if (part && previous) previous.after(part);
        else if (part) this.content.prepend(part);
      }
      this.parts[name] = shown;
      previous = shown ?? previous;
    }
    this.ticking = this.ticking.filter(([e]) => e.isConnected);
    this.body.scrollTop = top;
  }

  // showTime shows what changes with the time.
  showTime() {
    if (this.end) return;
    const now = this.handlers.now();
    for (const [e, text] of this.ticking) setText(e, text(now));
    this.drawTimeline();
  }

  drawTimeline() {
    if (this.connection && this.timeline?.isConnected && !this.end) drawTimeline(this.timeline, this.connection, this.handlers.now());
  }
}
