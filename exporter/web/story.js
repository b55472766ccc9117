// SPDX-License-Identifier: Apache-2.0

// The story of one connection: what happened, drawn; its settings and risks; and in
// the words of `halfopen explain` what it is doing, and what to do about it.

import { ask as answer, bytes, clock, el, endpoint, evidences, groupName, meaning, owner, plural, risks, say, span, spaced, whole } from '/web/format.js';
import { draw } from '/web/timeline.js';

const soonest = 1500; // between two questions, ms
const regularly = 5000;

// narrow is where the story covers all of the page: see the style sheet.
const narrow = matchMedia('(max-width: 740px)');

export class Story {
  // on has now(), death(cookie), close(), and closed(cookie), where the focus goes then.
  constructor(box, on) {
    this.box = box;
    this.on = on;
    this.cookie = '';
    this.asked = 0;
    this.resized = new ResizeObserver(() => this.picture());
    narrow.addEventListener('change', () => this.cover());
  }

  // show shows a connection; the empty cookie none.
  show(cookie) {
    if (cookie === this.cookie) return;
    const before = this.cookie, focused = this.box.contains(document.activeElement);
    this.cookie = cookie;
    this.detail = null;
    this.gone = null;
    this.parts = {};
    this.counting = [];
    this.asked = 0;
    this.resized.disconnect();
    this.box.hidden = !cookie;
    this.cover();
    if (!cookie) {
      if (focused) this.on.closed(before);
      return;
    }
    this.title = el('h2', { id: 'storytitle', tabindex: -1 }, 'Connection ', cookie);
    this.badge = el('span', { class: 'badge' });
    this.banner = el('p', { class: 'banner', role: 'status', hidden: true });
    this.told = el('div', null, el('p', { class: 'muted' }, 'Looking…'));
    this.body = el('div', { class: 'body', tabindex: 0, role: 'region', 'aria-labelledby': 'storytitle' }, this.banner, this.told);
    this.box.replaceChildren(
      el('div', { class: 'head' }, this.title, this.badge, el('span', { class: 'grow' }),
        el('button', { type: 'button', class: 'quiet close', 'aria-label': 'Close the story', onclick: () => this.leave() }, '×')),
      this.body);
    this.title.focus({ preventScroll: true });
    this.ask();
  }

  // cover keeps the focus from what is not seen.
  cover() {
    document.body.classList.toggle('telling', Boolean(this.cookie));
    for (const e of document.querySelectorAll('body > .skip, body > header, body > main')) e.inert = Boolean(this.cookie) && narrow.matches;
  }

  leave() {
    if (this.cookie) this.on.close();
  }

  // touched is called when there is news of a connection. That it is not there any
  // more can also be because a look at all has missed it: the agent knows.
  touched(cookie, gone) {
    if (cookie !== this.cookie) return;
    if (gone) {
      if (!this.gone) this.ask();
      return;
    }
    this.soon = true;
    this.gone = null;
    this.banner.hidden = true;
  }

  // ended is called when a connection has died.
  ended(death) {
    if (death.cookie !== this.cookie) return;
    this.gone = { death };
    this.bury();
  }

  tick() {
    if (!this.cookie) return;
    const since = Date.now() - this.asked;
    if (!this.gone && ((this.soon && since > soonest) || since > regularly)) this.ask();
    if (this.gone && !this.gone.death) this.bury();
    this.clocks();
  }

  async ask() {
    const cookie = this.cookie;
    this.asked = Date.now();
    this.soon = false;
    let trouble = 'The agent does not answer.';
    try {
      const response = await answer(`/api/v1/connections/${cookie}`);
      const body = await response.json();
      if (cookie !== this.cookie || this.gone) return;
      if (response.ok) {
        this.detail = body;
        this.fill();
        return;
      }
      trouble = body.error;
      if (response.status === 404) {
        this.gone = { error: trouble };
        this.bury();
        return;
      }
    } catch { /* the agent is not there, or its answer is not its own */ }
    if (cookie === this.cookie && !this.detail) this.told.replaceChildren(el('p', { class: 'muted' }, trouble));
  }

  // bury tells how it ended, once that is known.
  bury() {
    const d = this.gone.death ??= this.on.death(this.cookie);
    this.banner.hidden = false;
    say(this.banner, d
      ? `Died at ${clock(d.at)}: ${spaced(d.cause)}${d.during ? ` during ${spaced(d.during)}` : ''}${d.errno ? ` (${d.errno})` : ''}${d.zombie_seconds ? `, after being a zombie for ${span(d.zombie_seconds)}` : ''}.`
      : this.detail ? 'It is no more.' : this.gone.error);
    if (!this.detail) this.told.replaceChildren();
    this.box.dataset.verdict = 'dead';
    say(this.badge, 'dead');
  }

  fill() {
    const c = this.detail, x = c.explanation, looked = Date.parse(x.at);
    const [who, where] = owner(c.process?.pid, c.process?.comm, groupName(c), c.accepted === false ? 'unaccepted' : c.uid === null ? 'orphaned' : '');
    say(this.title, `${endpoint(c.local)} → ${endpoint(c.remote)}`);
    say(this.badge, c.verdict ?? c.state);
    this.badge.title = meaning[c.verdict] ?? '';
    this.box.dataset.verdict = c.verdict ?? '';

    const counts = (e, text) => {
      this.counting.push([e, text]);
      return e;
    };
    const fact = (label, value, title) => el('div', { class: 'fact', title }, el('span', { class: 'label' }, label), value);
    const fixed = (text) => el('span', { class: 'figure' }, text);
    const count = (text) => counts(fixed(''), text);
    const ago = (seconds, none) => (seconds === null ? fixed(none) : count((now) => whole(seconds + (now - looked) / 1000)));
    const left = (f) => whole((Date.parse(f.at) - this.on.now()) / 1000);
    const timer = (t) => [
      el('dt', null, el('strong', null, spaced(t.name)), ' ', t.fires
        ? counts(el('span', { class: 'when' }), () => (Date.parse(t.fires.at) > this.on.now() ? `fires in ${left(t.fires)}` : 'fires now'))
        : el('span', { class: 'when' }, 'not running')),
      el('dd', null, el('span', { class: 'muted' }, t.purpose), el('br'), t.fires ? `Then: ${t.then}` : t.then)];
    this.picturebox ??= el('figure', { class: 'timeline' });
    this.resized.observe(this.picturebox);

    this.put({
      who: el('p', { class: 'who' }, el('strong', null, who || 'owner unknown'), where ? el('bdi', null, ` ${where}`) : '',
        el('span', { class: 'muted' }, ` · ${c.state} · cookie ${c.cookie} · network namespace ${c.netns}`)),
      facts: el('div', { class: 'facts' },
        fact('Silent', ago(c.silent_seconds, 'never heard'), 'Since anything was heard from the peer'),
        fact('Idle', ago(c.idle_seconds, '–'), 'Since data last moved, either way'),
        fact('Unanswered', fixed(c.unanswered ? String(c.unanswered) : '–'), c.evidence ? plural(c.unanswered, ...evidences[c.evidence]) : ''),
        fact('Kernel gives up', c.gives_up ? count(() => (Date.parse(c.gives_up.at) > this.on.now() ? `in ${left(c.gives_up)}` : 'any moment')) : fixed('never'),
          c.gives_up ? spaced(c.gives_up.by) : 'Nothing will ever tell it'),
        fact('Send queue', fixed(c.send_queue_bytes ? bytes(c.send_queue_bytes) : '–'), 'Not acknowledged yet, or not even sent'),
        fact('Round trip', fixed(c.srtt_seconds ? `${(c.srtt_seconds * 1000).toPrecision(2) * 1} ms` : '–'), 'Smoothed')),
      picture: this.picturebox,
      risks: c.risks.length ? section('Risks', el('ul', { class: 'risks' }, ...c.risks.map((r) => el('li', null, el('strong', null, spaced(r)), ` ${risks[r] ?? ''}`)))) : null,
      doing: section('What it is doing', el('p', null, x.doing.join(' '))),
      next: section('What happens next', el('p', null, x.next.join(' '))),
      advice: section('Noticing sooner', el('p', null, x.assessment), advice(x.advice)),
      timers: section('Timers', el('dl', { class: 'timers' }, ...x.timers.flatMap(timer))),
      settings: section('Settings', settings(x.settings)),
      events: c.events.length ? section('Lately', el('ol', { class: 'events' }, ...[...c.events].reverse().map(event))) : null,
    });
    this.clocks();
  }

  // put shows these parts for those that were there, but for one in which somebody
  // has the focus or has selected something: to copy it, most likely.
  put(parts) {
    const top = this.body.scrollTop, selected = getSelection();
    const used = (e) => e.contains(document.activeElement) || (!selected.isCollapsed && selected.containsNode(e, true));
    if (!Object.keys(this.parts).length) this.told.replaceChildren();
    let at = null;
    for (const [name, part] of Object.entries(parts)) {
      const old = this.parts[name];
      let e = part;
      if (old && (old === part || used(old))) e = old;
      else {
        old?.remove();
        if (e && at) at.after(e);
        else if (e) this.told.prepend(e);
      }
      this.parts[name] = e;
      at = e ?? at;
    }
    this.counting = this.counting.filter(([e]) => e.isConnected);
    this.body.scrollTop = top;
  }

  clocks() {
    if (this.gone) return;
    const now = this.on.now();
    for (const [e, text] of this.counting) say(e, text(now));
    this.picture();
  }

  picture() {
    if (this.detail && this.picturebox?.isConnected && !this.gone) draw(this.picturebox, this.detail, this.on.now());
  }
}

const section = (title, ...children) => el('section', null, el('h3', null, title), ...children);

function advice(list) {
  if (!list.length) return '';
  return el('ol', { class: 'advice' }, ...list.map((a) => el('li', null,
    el('p', null, a.text),
    ...a.how.map((h) => el('div', { class: 'how' }, el('pre', { tabindex: 0 }, el('code', null, h)), copier(h))),
    a.gives_up ? el('p', { class: 'muted' }, `Done now, the kernel would give up in ${span(a.gives_up.in_seconds)} (${a.gives_up.by}).`) : '')));
}

function copier(text) {
  if (!navigator.clipboard) return ''; // not without TLS, unless on this machine
  const b = el('button', { type: 'button', class: 'quiet copy', 'aria-label': 'Copy', onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      say(b, 'copied');
    } catch {
      say(b, 'not allowed');
    }
    setTimeout(() => say(b, 'copy'), 1500);
  } }, 'copy');
  return b;
}

const units = { seconds: 's', milliseconds: 'ms', probes: '', retransmissions: '' };
function value(s) {
  if (s.unit === 'switch') return s.value ? 'on' : 'off';
  if (s.unit === 'milliseconds') return s.value ? span(s.value / 1000) : 'off';
  if (s.unit === 'seconds' && s.value >= 60) return `${s.value} s (${whole(s.value)})`;
  return `${s.value} ${units[s.unit] ?? s.unit}`.trim();
}

const sources = {
  socket: () => 'set on the socket',
  sysctl: (s) => `sysctl ${s.sysctl}`,
  default: (s) => (s.sysctl ? `default of ${s.sysctl}` : 'default, not set on the socket'),
};

function settings(list) {
  return el('table', { class: 'settings' },
    el('thead', null, el('tr', null, ...['Setting', 'Value', 'Where from', 'What it is'].map((t) => el('th', { scope: 'col' }, t)))),
    el('tbody', null, ...list.map((s) => el('tr', null,
      el('th', { scope: 'row' }, s.option ?? s.sysctl?.replace(/^net\.ipv[46]\./, '') ?? ''),
      el('td', { class: 'value' }, value(s)),
      el('td', { 'data-source': s.source }, (sources[s.source] ?? (() => s.source))(s)),
      el('td', { class: 'muted' }, s.means)))));
}

function event(e) {
  const what = {
    solicitation: () => `${evidences[e.evidence]?.[0] ?? 'solicitation'} ${e.unanswered} in a row, unanswered`,
    answer: () => `the peer was heard${e.took_seconds >= 0 ? `, ${span(e.took_seconds)} after it was last asked` : ''}`,
    verdict: () => `${e.to}, was ${e.from}`,
  }[e.kind] ?? (() => e.kind);
  return el('li', { 'data-kind': e.kind, 'data-verdict': e.to }, el('time', { datetime: e.at, class: 'muted' }, clock(Date.parse(e.at))), ' ', what());
}
