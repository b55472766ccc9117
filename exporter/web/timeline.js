// SPDX-License-Identifier: Apache-2.0

// A drawing of what happened to a connection, and what is to come: data, what was
// asked, what was answered, the silence since, and when the kernel will give up.

import { evidences, plural, span, spaced, whole } from '/web/format.js';

const ns = 'http://www.w3.org/2000/svg';
function s(tag, attributes, text) {
  const e = document.createElementNS(ns, tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  if (text !== undefined) e.textContent = text;
  return e;
}

const lanes = { verdict: 22, data: 54, asked: 84, answered: 114 };
const bottom = 134, height = 164, left = 74, right = 18;

export function draw(figure, c, now) {
  const width = Math.max(300, figure.clientWidth);
  const looked = Date.parse(c.explanation.at);
  const events = c.events.map((e) => ({ ...e, at: Date.parse(e.at) }));
  const heard = c.silent_seconds === null ? null : looked - c.silent_seconds * 1000;
  // The kernel stamps a retransmission as data that was sent.
  const data = c.idle_seconds === null || c.retransmits.unanswered ? null : looked - c.idle_seconds * 1000;
  const ends = c.gives_up && { at: Math.max(Date.parse(c.gives_up.at), now), latest: Math.max(now, looked + c.gives_up.latest_in_seconds * 1000), by: c.gives_up.by };
  const next = c.explanation.timers.filter((t) => t.fires && Date.parse(t.fires.at) > now)
    .map((t) => ({ at: Date.parse(t.fires.at), name: t.name })).filter((t) => !ends || t.at < ends.at);

  // Time goes from left to right, but a long wait takes less room than its length:
  // what is evenly spaced stays so, and hours do not hide seconds.
  const times = [now, heard, data, ...events.map((e) => e.at), ...next.map((t) => t.at), ends?.at, ends?.latest]
    .filter((t) => t !== null && t !== undefined && Number.isFinite(t));
  const moments = [...new Set(times)].sort((a, b) => a - b);
  const weight = (gap) => (0.15 + gap / 1000) ** 0.42;
  const along = [0];
  for (let i = 1; i < moments.length; i++) along.push(along[i - 1] + weight(moments[i] - moments[i - 1]));
  const scale = (width - left - right) / Math.max(along.at(-1), 0.001);
  const x = (t) => left + along[moments.indexOf(t)] * scale;
  const from = moments[0];

  const svg = s('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img' });
  svg.setAttribute('aria-label', words(c, events, heard, data, ends, now));
  const defs = s('defs', {});
  const hatch = s('pattern', { id: 'hatch', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' });
  hatch.append(s('rect', { width: 2, height: 6, class: 'hatch' }));
  defs.append(hatch);
  svg.append(defs);
  for (const [name, y] of Object.entries(lanes)) {
    svg.append(s('text', { x: left - 12, y: y + 4, class: 'lane', 'text-anchor': 'end' }, name));
    if (name !== 'verdict') svg.append(s('line', { x1: left, x2: width - right, y1: y, y2: y, class: 'guide' }));
  }

  // Silence, from when the peer was last heard until now.
  if (heard !== null && now - heard > 1000) {
    const a = x(heard), b = x(now);
    svg.append(s('rect', { x: a, y: lanes.data - 12, width: Math.max(0, b - a), height: lanes.answered - lanes.data + 24, class: 'silence', fill: 'url(#hatch)' }));
    if (b - a > 90) svg.append(s('text', { x: (a + b) / 2, y: lanes.answered + 5, class: 'silent', 'text-anchor': 'middle' }, `silent for ${whole((now - heard) / 1000)}`));
  }

  // Verdicts, as far back as is known.
  const changes = events.filter((e) => e.kind === 'verdict');
  const spans = [];
  let began = from, verdict = changes[0]?.from ?? c.verdict;
  for (const e of changes) {
    spans.push([began, e.at, verdict]);
    [began, verdict] = [e.at, e.to];
  }
  spans.push([began, now, c.verdict ?? '']);
  for (const [a, b, v] of spans) {
    const w = x(b) - x(a);
    svg.append(s('rect', { x: x(a), y: lanes.verdict - 9, width: Math.max(1, w - 1), height: 18, rx: 3, class: `verdict v-${v}` }));
    if (w > v.length * 7 + 10) svg.append(s('text', { x: x(a) + w / 2, y: lanes.verdict + 4, class: 'onverdict', 'text-anchor': 'middle' }, v));
  }

  if (data !== null) svg.append(mark(x(data), lanes.data, 'data', `data moved ${whole((now - data) / 1000)} ago`));
  let before = -Infinity;
  for (const e of events) {
    if (e.kind === 'solicitation') {
      const at = x(e.at);
      const tick = s('path', { d: `M${at} ${lanes.asked - 8}v16`, class: 'asked' });
      tick.append(s('title', {}, `${evidences[e.evidence]?.[0] ?? 'solicitation'} ${e.unanswered} in a row, ${whole((now - e.at) / 1000)} ago`));
      svg.append(tick);
      if (at - before > 15) {
        svg.append(s('text', { x: at, y: lanes.asked - 12, class: 'count', 'text-anchor': 'middle' }, e.unanswered));
        before = at;
      }
    } else if (e.kind === 'answer') {
      svg.append(mark(x(e.at), lanes.answered, 'answered', `heard ${whole((now - e.at) / 1000)} ago`));
    }
  }
  if (heard !== null && !events.some((e) => e.kind === 'answer' && Math.abs(e.at - heard) < 50)) {
    svg.append(mark(x(heard), lanes.answered, 'answered', `last heard ${whole((now - heard) / 1000)} ago`));
  }
  for (const t of next) {
    const tick = s('path', { d: `M${x(t.at)} ${lanes.asked - 8}v16`, class: 'next' });
    tick.append(s('title', {}, `${spaced(t.name)} fires in ${whole((t.at - now) / 1000)}`));
    svg.append(tick);
  }

  // Now, and the end.
  svg.append(s('line', { x1: x(now), x2: x(now), y1: 6, y2: bottom, class: 'now' }));
  if (ends) {
    const a = x(ends.at), b = x(ends.latest);
    svg.append(s('rect', { x: a, y: lanes.verdict - 9, width: Math.max(3, b - a), height: bottom - lanes.verdict + 9, class: 'end' }));
  }
  const axis = [[now, 'now', 3]];
  if (ends) axis.push([ends.at, ends.at > now ? `gives up in ${whole((ends.at - now) / 1000)}` : 'gives up', 2]);
  if (next.length) axis.push([next[0].at, `+${whole((next[0].at - now) / 1000)}`, 0]);
  if (from < now) axis.push([from, `${whole((now - from) / 1000)} ago`, 1]);
  for (const e of events) axis.push([e.at, whole((now - e.at) / 1000), -1]);
  svg.append(s('line', { x1: left, x2: width - right, y1: bottom, y2: bottom, class: 'axis' }));
  const taken = [];
  for (const [t, text] of axis.filter(([t]) => moments.includes(t)).sort((a, b) => b[2] - a[2] || b[0] - a[0])) {
    const w = text.length * 6.3 + 12;
    const at = Math.max(left + w / 2 - 8, Math.min(width - w / 2, x(t)));
    if (taken.some(([a, b]) => at - w / 2 < b && at + w / 2 > a)) continue;
    taken.push([at - w / 2, at + w / 2]);
    svg.append(s('line', { x1: x(t), x2: x(t), y1: bottom, y2: bottom + 4, class: 'axis' }),
      s('text', { x: at, y: bottom + 18, 'text-anchor': 'middle', class: t === now ? 'nowtext' : 'axistext' }, text));
  }
  figure.replaceChildren(svg);
}

function mark(x, y, kind, title) {
  const g = s('circle', { cx: x, cy: y, r: 4.5, class: kind });
  g.append(s('title', {}, title));
  return g;
}

function words(c, events, heard, data, ends, now) {
  const asked = events.filter((e) => e.kind === 'solicitation').length;
  return [
    'Timeline.',
    data !== null ? `Data moved ${whole((now - data) / 1000)} ago.` : '',
    heard !== null ? `The peer was last heard ${whole((now - heard) / 1000)} ago.` : 'The peer was never heard.',
    c.unanswered ? `${plural(c.unanswered, ...(evidences[c.evidence] ?? ['solicitation']))} unanswered since, ${asked} drawn.` : '',
    ends ? `The kernel gives up in ${span((ends.at - now) / 1000)}, by ${spaced(ends.by)}.` : 'The kernel never gives up.',
  ].filter(Boolean).join(' ');
}
