// SPDX-License-Identifier: Apache-2.0

import uPlot from '/web/uplot/uPlot.esm.js';
import { wholeAge } from '/web/format.js';

// The charts: the sparkline of each tile, and the histogram of idle times.

// color returns a color of the style sheet, in the current theme, as a canvas needs it.
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

// repaint draws all charts again, in the current theme.
export function repaint() {
  for (const c of charts) c.redraw(false, true);
}

// makeChart makes a chart that is as large as the element it is in.
function makeChart(parent, options, data) {
  const size = () => ({ width: Math.max(40, parent.clientWidth), height: Math.max(20, parent.clientHeight) });
  const chart = new uPlot({ ...size(), ...options }, data, parent);
  charts.add(chart);
  new ResizeObserver(() => {
    const { width, height } = size();
    if (width !== chart.width || height !== chart.height) chart.setSize({ width, height });
  }).observe(parent);
  return chart;
}

const hour = 3600, shortest = 120; // seconds

// sparkline makes a chart of one number over the last hour, or since the agent started,
// and returns a function that draws it: of times in seconds since 1970, and the values at
// these. It has the color of that name.
export function sparkline(parent, name, bars) {
  let end = Date.now() / 1000, length = hour;
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
  const chart = makeChart(parent, {
    legend: { show: false }, cursor: { show: false }, padding: [2, 0, 1, 0],
    axes: [{ show: false }, { show: false }],
    scales: {
      x: { time: false, range: () => [end - length, end] },
      y: { range: (_, low, high) => [0, Math.max(1, high ?? 1) * 1.08] },
    },
    series: [{}, series],
  }, [[end - 1, end], [0, 0]]);
  return (times, values) => {
    end = times.at(-1);
    length = Math.max(shortest, Math.min(hour, end - times[0]));
    chart.setData([times, values]);
  };
}

// histogram makes a chart of idle times, a bar for each bucket, and returns a function that
// draws it, with a line at the shortest middlebox timeout, in seconds. The counts differ by orders
// of magnitude, so the height of a bar is their logarithm.
export function histogram(parent) {
  let bounds = [], timeout = 0;
  const barHeight = (n) => Math.log10(1 + n);
  const labelled = [1, 30, 300, 1200, 7200, 86400];
  // position returns where a time is among the bars. Bar i ends at i + 0.5.
  const position = (seconds) => {
    const i = bounds.findIndex((b) => seconds <= b);
    if (i < 0) return bounds.length - 0.5;
    const low = i ? Math.log(bounds[i - 1]) : 0, high = Math.log(bounds[i]);
    return i - 0.5 + (high > low ? (Math.log(Math.max(1, seconds)) - low) / (high - low) : 1);
  };
  const font = '11px system-ui, sans-serif';
  const bars = uPlot.paths.bars({ size: [0.78, 100], radius: 0.15 });
  const series = (name) => ({ paths: bars, width: 0, fill: () => color(name), points: { show: false } });
  const chart = makeChart(parent, {
    legend: { show: false }, cursor: { show: false }, padding: [20, 8, 0, 0],
    scales: {
      x: { time: false, range: () => [-0.7, Math.max(1, bounds.length) + 0.7] },
      y: { range: (_, low, high) => [0, Math.max(1.1, (high ?? 0) * 1.08)] },
    },
    axes: [
      {
        font, size: 22, gap: 3, stroke: () => color('muted'), grid: { show: false }, ticks: { show: false },
        splits: () => bounds.flatMap((b, i) => (labelled.includes(b) ? [i + 0.5] : [])),
        values: () => bounds.filter((b) => labelled.includes(b)).map(wholeAge),
      },
      {
        font, size: 38, gap: 4, stroke: () => color('muted'), ticks: { show: false },
        grid: { stroke: () => color('line'), width: 1 },
        splits: (u) => [0, 1, 10, 100, 1000, 10000, 100000, 1000000].map(barHeight).filter((v) => v <= u.scales.y.max),
        values: (_, splits) => splits.map((v) => {
          const n = Math.round(10 ** v - 1);
          return n >= 1000 ? `${n / 1000}k` : String(n);
        }),
      },
    ],
    series: [{}, series('bar'), series('suspect')],
    hooks: {
      draw: [(u) => {
        if (!timeout) return;
        const { ctx, bbox } = u, ratio = devicePixelRatio;
        const x = Math.round(u.valToPos(position(timeout), 'x', true));
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
        ctx.fillText(`middlebox timeout: ${wholeAge(timeout)}`, x + (ctx.textAlign === 'left' ? 5 : -5) * ratio, bbox.top - 8 * ratio);
        ctx.restore();
      }],
    },
  }, [[0], [null], [null]]);
  return (idle, middleboxTimeout) => {
    [bounds, timeout] = [idle.bounds ?? [], middleboxTimeout];
    const counts = idle.counts ?? [], line = position(timeout);
    chart.setData([
      counts.map((_, i) => i),
      counts.map((n, i) => (i < line ? barHeight(n) : null)),
      counts.map((n, i) => (i < line ? null : barHeight(n))),
    ]);
  };
}
