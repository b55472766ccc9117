// SPDX-License-Identifier: Apache-2.0

import uPlot from '/web/uplot/uPlot.esm.js';
import { whole } from '/web/format.js';

// color is a color of the style sheet as the canvas wants it, in the theme of now.
const probe = document.createElement('span');
probe.hidden = true;
document.body.append(probe);
function color(name, alpha = 1) {
  probe.style.color = `var(--${name})`;
  const c = getComputedStyle(probe).color;
  if (alpha === 1) return c;
  const [r, g, b] = c.match(/[\d.]+/g);
  return `rgba(${r}, ${g}, ${b}, ${alpha})`;
}

const charts = new Set();
export function repaint() {
  for (const c of charts) c.redraw(false, true);
}

function place(into, options, data) {
  const size = () => ({ width: Math.max(40, into.clientWidth), height: Math.max(20, into.clientHeight) });
  const chart = new uPlot({ ...size(), ...options }, data, into);
  charts.add(chart);
  new ResizeObserver(() => {
    const { width, height } = size();
    if (width !== chart.width || height !== chart.height) chart.setSize({ width, height });
  }).observe(into);
  return chart;
}

const hour = 3600;

// sparkline draws one number over the last hour, or since the agent began.
export function sparkline(into, name, bars) {
  let until = Date.now() / 1000, long = hour;
  const series = {
    stroke: () => color(name), width: 1.5, points: { show: false },
    fill: () => color(name, bars ? 0.8 : 0.14),
  };
  if (bars) {
    series.paths = uPlot.paths.bars({ size: [1, 4, 2], align: -1 });
    series.width = 0;
  } else {
    series.paths = uPlot.paths.stepped({ align: 1 });
  }
  const chart = place(into, {
    legend: { show: false }, cursor: { show: false }, padding: [2, 0, 1, 0],
    axes: [{ show: false }, { show: false }],
    scales: {
      x: { time: false, range: () => [until - long, until] },
      y: { range: (_, low, high) => [0, Math.max(1, high ?? 1) * 1.08] },
    },
    series: [{}, series],
  }, [[until - 1, until], [0, 0]]);
  return (at, values) => {
    until = at.at(-1);
    long = Math.max(120, Math.min(hour, until - at[0]));
    chart.setData([at, values]);
  };
}

// histogram draws idle times, one bar a bucket, and the limit of the middlebox on
// it. Its counts go over many orders, so the height is the logarithm.
export function histogram(into) {
  let bounds = [], limit = 0;
  const up = (n) => Math.log10(1 + n);
  const labelled = [1, 30, 300, 1200, 7200, 86400];
  // where a time is among the bars, of which number i ends at i + 0.5.
  const where = (seconds) => {
    const i = bounds.findIndex((b) => seconds <= b);
    if (i < 0) return bounds.length - 0.5;
    const low = i ? Math.log(bounds[i - 1]) : 0, high = Math.log(bounds[i]);
    return i - 0.5 + (high > low ? (Math.log(Math.max(1, seconds)) - low) / (high - low) : 1);
  };
  const font = '11px system-ui, sans-serif';
  const bars = uPlot.paths.bars({ size: [0.78, 100], radius: 0.15 });
  const series = (name) => ({ paths: bars, width: 0, fill: () => color(name), points: { show: false } });
  const chart = place(into, {
    legend: { show: false }, cursor: { show: false }, padding: [20, 8, 0, 0],
    scales: {
      x: { time: false, range: () => [-0.7, Math.max(1, bounds.length) + 0.7] },
      y: { range: (_, low, high) => [0, Math.max(1.1, (high ?? 0) * 1.08)] },
    },
    axes: [
      {
        font, size: 22, gap: 3, stroke: () => color('muted'), grid: { show: false }, ticks: { show: false },
        splits: () => bounds.flatMap((b, i) => (labelled.includes(b) ? [i + 0.5] : [])),
        values: () => bounds.filter((b) => labelled.includes(b)).map(whole),
      },
      {
        font, size: 38, gap: 4, stroke: () => color('muted'), ticks: { show: false },
        grid: { stroke: () => color('line'), width: 1 },
        splits: (u) => [0, 1, 10, 100, 1000, 10000, 100000, 1000000].map(up).filter((v) => v <= u.scales.y.max),
        values: (_, splits) => splits.map((v) => {
          const n = Math.round(10 ** v - 1);
          return n >= 1000 ? `${n / 1000}k` : String(n);
        }),
      },
    ],
    series: [{}, series('bar'), series('suspect')],
    hooks: {
      draw: [(u) => {
        if (!limit) return;
        const { ctx, bbox } = u, ratio = devicePixelRatio;
        const x = Math.round(u.valToPos(where(limit), 'x', true));
        ctx.save();
        ctx.strokeStyle = ctx.fillStyle = color('zombie');
        ctx.lineWidth = ratio;
        ctx.setLineDash([4 * ratio, 3 * ratio]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top - 6 * ratio);
        ctx.lineTo(x, bbox.top + bbox.height);
        ctx.stroke();
        ctx.font = `${11 * ratio}px system-ui, sans-serif`;
        ctx.textAlign = x > bbox.left + bbox.width * 0.65 ? 'right' : 'left';
        ctx.fillText(`middlebox forgets: ${whole(limit)}`, x + (ctx.textAlign === 'left' ? 5 : -5) * ratio, bbox.top - 8 * ratio);
        ctx.restore();
      }],
    },
  }, [[0], [null], [null]]);
  return (idle, after) => {
    [bounds, limit] = [idle.bounds ?? [], after];
    const counts = idle.counts ?? [], line = where(limit);
    chart.setData([
      counts.map((_, i) => i),
      counts.map((n, i) => (i < line ? up(n) : null)),
      counts.map((n, i) => (i < line ? null : up(n))),
    ]);
  };
}
