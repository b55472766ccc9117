// SPDX-License-Identifier: Apache-2.0

// The parts of the story of a connection, as elements by name. c is a connection of the
// API with its events and explanation. tick(element, text) has the story set the text of an
// element to text(now) once a second, and returns the element; now() is the agent's time.

import { el, setText } from '/web/dom.js';
import { bytes, clock, printable, spaced, wholeAge } from '/web/format.js';
import { risks } from '/web/names.js';
import { ownerParts } from '/web/owners.js';
import { adviceText, adviceTitle, eventText, settingSource, settingValue, unansweredText } from '/web/storytext.js';

const meanings = Object.fromEntries(risks.map((r) => [r.name, r.meaning]));

// factsOf returns who owns the connection, and its numbers.
export function factsOf(c, owner, tick, now) {
  const [process, group] = ownerParts(owner), observed = Date.parse(c.explanation.at);
  const container = c.pod && c.container ? ` container ${printable(c.container)}` : '';
  const figure = (text) => el('span', { class: 'figure' }, text);
  const since = (seconds, never) => (seconds === null ? figure(never) : tick(figure(''), (t) => wholeAge(seconds + (t - observed) / 1000)));
  const fact = (label, value, title) => el('div', { class: 'fact', title }, el('span', { class: 'label' }, label), value);
  return {
    owner: el('p', { class: 'who' }, el('strong', null, process || 'owner unknown'), group ? el('bdi', null, ` ${group}${container}`) : '',
      el('span', { class: 'muted' }, ` · ${c.state} · cookie ${c.cookie} · network namespace ${c.netns}`)),
    facts: el('div', { class: 'facts' },
      fact('Silent', since(c.silent_seconds, 'never heard'), 'Time since the peer was last heard'),
      fact('Idle', since(c.idle_seconds, '–'), 'Time since data last moved, in either direction'),
      fact('Unanswered', figure(c.unanswered ? String(c.unanswered) : '–'), unansweredText(c)),
      c.gives_up
        ? fact('Kernel gives up', tick(figure(''), () => givesUpText(c.gives_up, now())), spaced(c.gives_up.by))
        : fact('Kernel gives up', figure('never'), 'No timer of the kernel will end this connection'),
      fact('Send queue', figure(c.send_queue_bytes ? bytes(c.send_queue_bytes) : '–'), 'Data that is not acknowledged, or not sent yet'),
      fact('Receive queue', figure(c.receive_queue_bytes ? bytes(c.receive_queue_bytes) : '–'), 'Data that the application of this host has not read'),
      fact('Round trip', figure(c.srtt_seconds ? `${(c.srtt_seconds * 1000).toPrecision(2) * 1} ms` : '–'), 'Smoothed round-trip time')),
  };
}

const timeLeft = (at, now) => wholeAge((Date.parse(at) - now) / 1000);
const givesUpText = ({ at }, now) => (Date.parse(at) > now ? `in ${timeLeft(at, now)}` : 'any moment');

// sections returns what the story says below the timeline; null for a section that the
// connection does not have.
export function sections(c, tick, now) {
  const x = c.explanation;
  return {
    risks: c.risks.length ? section('Risks', el('ul', { class: 'risks' }, ...c.risks.map((r) => el('li', null, el('strong', null, spaced(r)), ` ${meanings[r] ?? ''}`)))) : null,
    reason: c.reason ? section('Reason', el('p', null, el('strong', null, spaced(c.reason.code)), ` ${c.reason.detail}`)) : null,
    doing: section('What the connection is doing', el('p', null, x.doing.join(' '))),
    next: section('What happens next', el('p', null, x.next.join(' '))),
    advice: section(adviceTitle(c.verdict), el('p', null, x.assessment), adviceList(x.advice)),
    timers: section('Timers', el('dl', { class: 'timers' }, ...x.timers.flatMap((t) => timer(t, tick, now)))),
    settings: section('Settings', settingsTable(x.settings)),
    events: c.events.length ? section('Recent events', el('ol', { class: 'events' }, ...[...c.events].reverse().map(eventItem))) : null,
  };
}

const section = (title, ...children) => el('section', null, el('h3', null, title), ...children);

function adviceList(list) {
  if (!list.length) return '';
  return el('ol', { class: 'advice' }, ...list.map((advice) => el('li', null,
    el('p', null, advice.text),
    ...advice.how.map((command) => el('div', { class: 'how' }, el('pre', { tabindex: 0 }, el('code', null, command)), copyButton(command))),
    advice.gives_up ? el('p', { class: 'muted' }, adviceText(advice.gives_up)) : '')));
}

function copyButton(text) {
  if (!navigator.clipboard) return ''; // browsers have it over TLS, and from this machine
  const button = el('button', { type: 'button', class: 'quiet copy', 'aria-label': 'Copy', onclick: async () => {
    try {
      await navigator.clipboard.writeText(text);
      setText(button, 'copied');
    } catch {
      setText(button, 'not allowed');
    }
    setTimeout(() => setText(button, 'copy'), 1500);
  } }, 'copy');
  return button;
}

function timer(t, tick, now) {
  const when = t.fires
    ? tick(el('span', { class: 'when' }), () => (Date.parse(t.fires.at) > now() ? `fires in ${timeLeft(t.fires.at, now())}` : 'fires now'))
    : el('span', { class: 'when' }, 'not running');
  return [
    el('dt', null, el('strong', null, spaced(t.name)), ' ', when),
    el('dd', null, el('span', { class: 'muted' }, t.purpose), el('br'), t.fires ? `Then: ${t.then}` : t.then),
  ];
}

const settingsTable = (list) => el('table', { class: 'settings' },
  el('thead', null, el('tr', null, ...['Setting', 'Value', 'Source', 'Meaning'].map((title) => el('th', { scope: 'col' }, title)))),
  el('tbody', null, ...list.map((s) => el('tr', null,
    el('th', { scope: 'row' }, s.option ?? s.sysctl?.replace(/^net\.ipv[46]\./, '') ?? ''),
    el('td', { class: 'value' }, settingValue(s)),
    el('td', { 'data-source': s.source }, settingSource(s)),
    el('td', { class: 'muted' }, s.means)))));

const eventItem = (e) => el('li', { 'data-kind': e.kind, 'data-verdict': e.to },
  el('time', { datetime: e.at, class: 'muted' }, clock(Date.parse(e.at))), ' ', eventText(e));
