// SPDX-License-Identifier: Apache-2.0

// The story of one connection: what happened, drawn; its settings and risks; and in
// the words of `halfopen explain` what it is doing, and what to do about it.

import { bytes, clock, el, endpoint, evidences, groupName, meaning, owner, plural, risks, say, span, spaced, whole } from '/web/format.js';
import { draw } from '/web/timeline.js';

const soonest = 1500; // between two questions, ms
const regularly = 5000;

export class Story {
  // on has now(), row(cookie), death(cookie) and close(cookie).
  constructor(box, on) {
    this.box = box;
    this.on = on;
    this.cookie = '';
    this.asked = 0;
    this.resized = new ResizeObserver(() => this.picture());
  }

  // show shows a connection; the empty cookie none.
  show(cookie) {
    if (cookie === this.cookie) return;
    this.cookie = cookie;
    this.detail = null;
    this.gone = null;
    this.asked = 0;
    this.resized.disconnect();
    this.box.hidden = !cookie;
    document.body.classList.toggle('telling', Boolean(cookie));
    if (!cookie) return;
    this.title = el('h2', { id: 'storytitle', tabindex: -1 }, 'Connection ', cookie);
    this.badge = el('span', { class: 'badge' });
    this.body = el('div', { class: 'body', tabindex: 0, role: 'region', 'aria-labelledby': 'storytitle' }, el('p', { class: 'muted' }, 'Looking…'));
    this.box.replaceChildren(
      el('div', { class: 'head' }, this.title, this.badge, el('span', { class: 'grow' }),
        el('button', { type: 'button', class: 'quiet close', 'aria-label': 'Close the story', onclick: () => this.leave() }, '×')),
      this.body);
    this.title.focus({ preventScroll: true });
    this.ask();
  }

  leave() {
    if (this.cookie) this.on.close(this.cookie);
  }

  // touched is called when there is news of a connection.
  touched(cookie) {
    if (cookie === this.cookie) this.soon = true;
  }

  // ended is called when a connection is no more.
  ended(cookie) {
    if (cookie !== this.cookie) return;
    this.gone ??= { error: 'It is no more.' };
    this.bury();
  }

  tick() {
    if (!this.cookie) return;
    const since = Date.now() - this.asked;
    if (!this.gone && ((this.soon && since > soonest) || since > regularly)) this.ask();
    if (this.gone && !this.gone.told) this.bury();
    this.clocks();
  }

  async ask() {
    const cookie = this.cookie;
    this.asked = Date.now();
    this.soon = false;
    try {
      const answer = await fetch(`/api/v1/connections/${cookie}`);
      const body = await answer.json();
      if (cookie !== this.cookie || this.gone) return;
      if (answer.ok) {
        this.detail = body;
        this.fill();
      } else {
        this.gone = { error: body.error };
        this.bury();
      }
    } catch {
      if (cookie === this.cookie && !this.detail) this.body.replaceChildren(el('p', { class: 'muted' }, 'The agent does not answer.'));
    }
  }

  // bury tells how it ended, once that is known.
  bury() {
    const d = this.on.death(this.cookie);
    const text = d
      ? `Died at ${clock(d.at)}: ${spaced(d.cause)}${d.during ? ` during ${spaced(d.during)}` : ''}${d.errno ? ` (${d.errno})` : ''}${d.zombie_seconds ? `, after being a zombie for ${span(d.zombie_seconds)}` : ''}.`
      : this.detail ? 'It is no more.' : this.gone.error;
    if (!this.banner?.isConnected) {
      this.banner = el('p', { class: 'banner', role: 'status' });
      if (!this.detail) this.body.replaceChildren();
      this.body.prepend(this.banner);
    }
    say(this.banner, text);
    this.gone.told = Boolean(d);
    this.box.dataset.verdict = 'dead';
    say(this.badge, 'dead');
  }

  fill() {
    const c = this.detail, x = c.explanation;
    this.looked = Date.parse(x.at);
    const [who, where] = owner(c.process?.pid, c.process?.comm, groupName(c), c.accepted === false ? 'unaccepted' : c.uid === null ? 'orphaned' : '');
    say(this.title, `${endpoint(c.local)} → ${endpoint(c.remote)}`);
    say(this.badge, c.verdict ?? c.state);
    this.badge.title = meaning[c.verdict] ?? '';
    this.box.dataset.verdict = c.verdict ?? '';
    const top = this.body.scrollTop;
    const held = this.body.contains(document.activeElement) && document.activeElement !== this.body;
    if (held) return this.clocks(); // somebody is reading code here, or copying it

    this.counting = [];
    const count = (text) => {
      const e = el('span', { class: 'figure' });
      this.counting.push([e, text]);
      return e;
    };
    const fact = (label, value, title) => el('div', { class: 'fact', title }, el('span', { class: 'label' }, label), value);
    const fixed = (text) => el('span', { class: 'figure' }, text);
    const ago = (seconds, none) => (seconds === null ? fixed(none) : count((now) => whole(seconds + (now - this.looked) / 1000)));
    const left = (f) => whole((Date.parse(f.at) - this.on.now()) / 1000);
    this.picturebox = el('figure', { class: 'timeline' });
    this.resized.disconnect();
    this.resized.observe(this.picturebox);

    this.body.replaceChildren(
      el('p', { class: 'who' }, el('strong', null, who || 'owner unknown'), where ? ` ${where}` : '',
        el('span', { class: 'muted' }, ` · ${c.state} · cookie ${c.cookie} · network namespace ${c.netns}`)),
      el('div', { class: 'facts' },
        fact('Silent', ago(c.silent_seconds, 'never heard'), 'Since anything was heard from the peer'),
        fact('Idle', ago(c.idle_seconds, '–'), 'Since data last moved, either way'),
        fact('Unanswered', fixed(c.unanswered ? String(c.unanswered) : '–'), c.evidence ? plural(c.unanswered, ...evidences[c.evidence]) : ''),
        fact('Kernel gives up', c.gives_up ? count(() => (Date.parse(c.gives_up.at) > this.on.now() ? `in ${left(c.gives_up)}` : 'any moment')) : fixed('never'),
          c.gives_up ? spaced(c.gives_up.by) : 'Nothing will ever tell it'),
        fact('In the send queue', fixed(c.send_queue_bytes ? bytes(c.send_queue_bytes) : '–')),
        fact('Round trip', fixed(c.srtt_seconds ? `${(c.srtt_seconds * 1000).toPrecision(2) * 1} ms` : '–'), 'Smoothed')),
      this.picturebox,
      c.risks.length ? section('Risks', el('ul', { class: 'risks' }, ...c.risks.map((r) => el('li', null, el('strong', null, spaced(r)), ` ${risks[r] ?? ''}`)))) : '',
      section('What it is doing', el('p', null, x.doing.join(' '))),
      section('What happens next', el('p', null, x.next.join(' '))),
      section('Noticing sooner', el('p', null, x.assessment), advice(x.advice)),
      section('Timers', el('dl', { class: 'timers' }, ...x.timers.flatMap((t) => {
        const when = el('span', { class: 'when' });
        if (t.fires) this.counting.push([when, () => (Date.parse(t.fires.at) > this.on.now() ? `fires in ${left(t.fires)}` : 'fires now')]);
        else say(when, 'not running');
        return [el('dt', null, el('strong', null, spaced(t.name)), ' ', when), el('dd', null, el('span', { class: 'muted' }, t.purpose), el('br'), t.fires ? `Then: ${t.then}` : t.then)];
      }))),
      section('Settings', settings(x.settings)),
      c.events.length ? section('Lately', el('ol', { class: 'events' }, ...[...c.events].reverse().map(event))) : '');
    this.body.scrollTop = top;
    this.clocks();
    this.picture();
  }

  clocks() {
    if (this.gone) return;
    const now = this.on.now();
    for (const [e, text] of this.counting ?? []) say(e, text(now));
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
    a.gives_up ? el('p', { class: 'muted' }, `Done now, the kernel would give up in ${span(a.gives_up.in_seconds)} (${spaced(a.gives_up.by)}).`) : '')));
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
  default: (s) => (s.sysctl ? `default of ${s.sysctl}` : 'default'),
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
