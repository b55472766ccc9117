// SPDX-License-Identifier: Apache-2.0

// The timeline of a connection, drawn: data, solicitations and answers so far, the silence
// since, and when the kernel will give up.

import { spaced, wholeAge } from '/web/format.js';
import { solicitation } from '/web/storytext.js';
import { axisLabels, timelineModel, timelineText, timeScale } from '/web/timelinemodel.js';

const namespace = 'http://www.w3.org/2000/svg';
function svg(tag, attributes, ...children) {
  const e = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
  e.append(...children);
  return e;
}

const lanes = { verdict: 22, data: 54, asked: 84, answered: 114 };
const bottom = 134, height = 164, left = 74, right = 18;

// drawTimeline draws the timeline of a connection of the API, at the agent's time now.
export function drawTimeline(figure, c, now) {
  const width = Math.max(300, figure.clientWidth);
  const model = timelineModel(c, now), x = timeScale(model.moments, left, width - right);
  figure.replaceChildren(svg('svg', { viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': timelineText(c, model) },
    hatching(), ...guides(width), ...silence(model, x), ...verdicts(model, x), ...data(model, x), ...events(model, x),
    ...timers(model, x), ...nowAndEnd(model, x), ...axis(model, x, width)));
}

function hatching() {
  const stripe = svg('rect', { width: 2, height: 6, class: 'hatch' });
  return svg('defs', {}, svg('pattern', { id: 'hatch', width: 6, height: 6, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' }, stripe));
}

const guides = (width) => Object.entries(lanes).flatMap(([name, y]) => [
  svg('text', { x: left - 12, y: y + 4, class: 'lane', 'text-anchor': 'end' }, name),
  ...(name === 'verdict' ? [] : [svg('line', { x1: left, x2: width - right, y1: y, y2: y, class: 'guide' })]),
]);

function silence({ heard, now }, x) {
  if (heard === null || now - heard <= 1000) return [];
  const from = x(heard), to = x(now);
  const area = svg('rect', { x: from, y: lanes.data - 12, width: Math.max(0, to - from), height: lanes.answered - lanes.data + 24, class: 'silence', fill: 'url(#hatch)' });
  if (to - from <= 90) return [area];
  return [area, svg('text', { x: (from + to) / 2, y: lanes.answered + 5, class: 'silent', 'text-anchor': 'middle' }, `silent for ${wholeAge((now - heard) / 1000)}`)];
}

const verdicts = (model, x) => model.verdicts.flatMap(({ from, to, verdict }) => {
  const start = x(from), length = x(to) - start;
  const bar = svg('rect', { x: start, y: lanes.verdict - 9, width: Math.max(1, length - 1), height: 18, rx: 3, class: `verdict v-${verdict}` });
  if (length <= verdict.length * 7 + 10) return [bar];
  return [bar, svg('text', { x: start + length / 2, y: lanes.verdict + 4, class: 'onverdict', 'text-anchor': 'middle' }, verdict)];
});

const dot = (x, lane, title) => svg('circle', { cx: x, cy: lanes[lane], r: 4.5, class: lane }, svg('title', {}, title));
const tick = (x, kind, title) => svg('path', { d: `M${x} ${lanes.asked - 8}v16`, class: kind }, svg('title', {}, title));

const data = (model, x) => (model.data === null ? [] : [dot(x(model.data), 'data', `data moved ${wholeAge((model.now - model.data) / 1000)} ago`)]);

function events({ events, heard, now }, x) {
  const shapes = [], since = (t) => wholeAge((now - t) / 1000);
  let lastCount = -Infinity;
  for (const e of events) {
    const at = x(e.at);
    if (e.kind === 'answer') shapes.push(dot(at, 'answered', `heard ${since(e.at)} ago`));
    if (e.kind !== 'solicitation') continue;
    shapes.push(tick(at, 'asked', `${solicitation(e.evidence)} ${e.unanswered} in a row, ${since(e.at)} ago`));
    if (at - lastCount > 15) {
      shapes.push(svg('text', { x: at, y: lanes.asked - 12, class: 'count', 'text-anchor': 'middle' }, e.unanswered));
      lastCount = at;
    }
  }
  if (heard !== null && !events.some((e) => e.kind === 'answer' && Math.abs(e.at - heard) < 50)) {
    shapes.push(dot(x(heard), 'answered', `last heard ${since(heard)} ago`));
  }
  return shapes;
}

const timers = (model, x) => model.timers.map((t) => tick(x(t.at), 'next', `${spaced(t.name)} fires in ${wholeAge((t.at - model.now) / 1000)}`));

function nowAndEnd({ now, ends }, x) {
  const shapes = [svg('line', { x1: x(now), x2: x(now), y1: 6, y2: bottom, class: 'now' })];
  if (ends) {
    const from = x(ends.at), to = x(ends.latest);
    shapes.push(svg('rect', { x: from, y: lanes.verdict - 9, width: Math.max(3, to - from), height: bottom - lanes.verdict + 9, class: 'end' }));
  }
  return shapes;
}

const axis = (model, x, width) => [
  svg('line', { x1: left, x2: width - right, y1: bottom, y2: bottom, class: 'axis' }),
  ...axisLabels(model, x, left, width).flatMap((label) => [
    svg('line', { x1: x(label.at), x2: x(label.at), y1: bottom, y2: bottom + 4, class: 'axis' }),
    svg('text', { x: label.x, y: bottom + 18, 'text-anchor': 'middle', class: label.at === model.now ? 'nowtext' : 'axistext' }, label.text),
  ]),
];
