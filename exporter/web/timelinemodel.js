// SPDX-License-Identifier: Apache-2.0

// What the timeline of a connection shows, and where along it. Needs no DOM.

import { age, plural, spaced, wholeAge } from '/web/format.js';
import { solicitation, unansweredText } from '/web/storytext.js';

// timelineModel returns, for a connection of the API with its events and explanation, at
// the agent's time now; times are in ms since 1970:
//   heard, data   when the peer was last heard and data last moved; null: never
//   ends          the kernel gives up from at to latest, by a cause; null: never
//   timers        the timers that fire before that: at, name
//   verdicts      the verdicts so far: from, to, verdict
//   events        the events of the connection
//   moments       all of these times, ascending
export function timelineModel(c, now) {
  const observed = Date.parse(c.explanation.at);
  const ago = (seconds) => (seconds === null ? null : observed - seconds * 1000);
  const events = c.events.map((e) => ({ ...e, at: Date.parse(e.at) }));
  const heard = ago(c.silent_seconds);
  // The kernel stamps a retransmission as data that was sent.
  const data = c.retransmits.unanswered ? null : ago(c.idle_seconds);
  const ends = c.gives_up && {
    at: Math.max(Date.parse(c.gives_up.at), now), latest: Math.max(now, observed + c.gives_up.latest_in_seconds * 1000), by: c.gives_up.by,
  };
  const timers = c.explanation.timers.filter((t) => t.fires).map((t) => ({ at: Date.parse(t.fires.at), name: t.name }))
    .filter((t) => t.at > now && (!ends || t.at < ends.at));
  const times = [now, heard, data, ...events.map((e) => e.at), ...timers.map((t) => t.at), ends?.at, ends?.latest];
  const moments = [...new Set(times.filter((t) => Number.isFinite(t)))].sort((a, b) => a - b);
  return { now, heard, data, ends, timers, events, moments, verdicts: verdictSpans(c.verdict, events, moments[0], now) };
}

function verdictSpans(last, events, first, now) {
  const changes = events.filter((e) => e.kind === 'verdict');
  const spans = [];
  let from = first, verdict = changes[0]?.from ?? last;
  for (const change of changes) {
    spans.push({ from, to: change.at, verdict });
    [from, verdict] = [change.at, change.to];
  }
  spans.push({ from, to: now, verdict: last ?? '' });
  return spans;
}

// timeScale returns where each of the moments is between left and right. A long wait takes
// less room than its length: even spacing stays even, and hours do not hide seconds.
export function timeScale(moments, left, right) {
  const weight = (gap) => (0.15 + gap / 1000) ** 0.42;
  const along = [0];
  for (let i = 1; i < moments.length; i++) along.push(along[i - 1] + weight(moments[i] - moments[i - 1]));
  const scale = (right - left) / Math.max(along.at(-1), 0.001);
  return (moment) => left + along[moments.indexOf(moment)] * scale;
}

const characterWidth = 6.3, labelPadding = 12;

// axisLabels returns the labels of the axis that fit without overlap, the most important
// ones first: at, text, and x, their middle.
export function axisLabels({ now, ends, timers, events, moments }, x, left, width) {
  const [first] = moments, since = (t) => wholeAge((now - t) / 1000), until = (t) => wholeAge((t - now) / 1000);
  const labels = [{ at: now, text: 'now', priority: 3 }];
  if (ends) labels.push({ at: ends.at, text: ends.at > now ? `gives up in ${until(ends.at)}` : 'gives up', priority: 2 });
  if (first < now) labels.push({ at: first, text: `${since(first)} ago`, priority: 1 });
  if (timers.length) labels.push({ at: timers[0].at, text: `+${until(timers[0].at)}`, priority: 0 });
  for (const e of events) labels.push({ at: e.at, text: since(e.at), priority: -1 });
  const placed = [];
  for (const label of labels.sort((a, b) => b.priority - a.priority || b.at - a.at)) {
    const room = label.text.length * characterWidth + labelPadding;
    const middle = Math.max(left + room / 2 - 8, Math.min(width - room / 2, x(label.at)));
    if (placed.every((other) => Math.abs(other.x - middle) >= (other.room + room) / 2)) placed.push({ ...label, x: middle, room });
  }
  return placed;
}

// timelineText describes the timeline to those who do not see it.
export function timelineText(c, { now, heard, data, ends, events }) {
  const drawn = events.filter((e) => e.kind === 'solicitation').length;
  const since = (t) => wholeAge((now - t) / 1000);
  return [
    'Timeline.',
    data !== null ? `Data moved ${since(data)} ago.` : '',
    heard !== null ? `The peer was last heard ${since(heard)} ago.` : 'The peer was never heard.',
    c.unanswered ? `${c.verdict === 'stuck' ? unansweredText(c) : `Since then ${plural(c.unanswered, solicitation(c.evidence))} went unanswered`}, of which the timeline shows ${drawn}.` : '',
    ends ? `The kernel gives up in ${age((ends.at - now) / 1000)}, by ${spaced(ends.by)}.` : 'The kernel never gives up.',
  ].filter(Boolean).join(' ');
}
