// SPDX-License-Identifier: Apache-2.0

// Words and numbers as `halfopen list` and `halfopen explain` write them.

export const verdicts = ['zombie', 'suspect', 'stalled', 'unguarded', 'idle', 'active'];
export const rank = Object.fromEntries(verdicts.map((v, i) => [v, i]));

export const meaning = {
  zombie: 'Several probes or retransmissions in a row unanswered, and long silence: the peer is most likely gone.',
  suspect: 'Something is unanswered, less than a zombie.',
  stalled: 'The peer answers, but its window has been closed for long.',
  unguarded: 'No data for long, and keepalive is off: a dead peer will not be noticed until somebody sends.',
  idle: 'No data for long, but keepalive is on: the kernel will notice a dead peer.',
  active: 'Data has moved lately, nothing is overdue.',
};

export const risks = {
  no_keepalive: 'Keepalive is off: as long as nothing is sent, a dead peer is never noticed.',
  keepalive_slower_than_middlebox: 'The first probe comes later than a NAT or load balancer may remember the connection.',
  user_timeout_overrides_keepcnt: 'TCP_USER_TIMEOUT is set, so the number of keepalive probes means nothing.',
  keepalive_masked_by_unacked_data: 'Keepalive is on, but waits while data is in flight or queued.',
  close_wait_leak: 'The peer has closed, the application has not.',
};

export const evidences = {
  keepalive: ['keepalive probe', 'keepalive probes'],
  retransmit: ['retransmission', 'retransmissions'],
  window_probe: ['window probe', 'window probes'],
};

const numbers = new Intl.NumberFormat('en-US');
export const count = (n) => numbers.format(n);
export const plural = (n, one, many = one + 's') => `${count(n)} ${n === 1 ? one : many}`;
export const spaced = (name) => name.replaceAll('_', ' ');

// span writes seconds, the two largest units of them.
export function span(seconds) {
  if (!(seconds >= 0)) return '0s';
  if (seconds < 1) return `${Math.round(seconds * 1000)}ms`;
  return whole(seconds);
}

// whole is span without fractions of a second, for what is counted up or down.
export function whole(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s}s`;
  const pair = (large, l, small, m) => (small ? `${large}${l}${small}${m}` : `${large}${l}`);
  if (s < 3600) return pair(Math.floor(s / 60), 'm', s % 60, 's');
  if (s < 86400) return pair(Math.floor(s / 3600), 'h', Math.floor((s % 3600) / 60), 'm');
  return pair(Math.floor(s / 86400), 'd', Math.floor((s % 86400) / 3600), 'h');
}

export function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / 1024 / 1024).toFixed(1)} MiB`;
}

const clocks = new Intl.DateTimeFormat('en-GB', { hour: '2-digit', minute: '2-digit', second: '2-digit' });
const days = new Intl.DateTimeFormat('en-GB', { day: 'numeric', month: 'short' });
// clock is a time of today, or with its day.
export const clock = (ms) => (days.format(ms) === days.format(Date.now()) ? '' : `${days.format(ms)} `) + clocks.format(ms);

export function endpoint(e) {
  return e.ip.includes(':') ? `[${e.ip}]:${e.port}` : `${e.ip}:${e.port}`;
}

// printable escapes what takes up no room of its own, or does something to the text
// around it (controls, what turns the direction of writing, what combines with the
// character before), and the backslash, as `halfopen list` does. A process calls
// itself what it likes.
const invisible = /[^\p{L}\p{N}\p{P}\p{S} ]|\p{Default_Ignorable_Code_Point}|\\/gu;
const short = { '\\': '\\\\', '\x07': '\\a', '\b': '\\b', '\f': '\\f', '\n': '\\n', '\r': '\\r', '\t': '\\t', '\v': '\\v' };
export function printable(name) {
  return (name ?? '').replace(invisible, (c) => {
    const n = c.codePointAt(0), hex = (digits) => n.toString(16).padStart(digits, '0');
    return short[c] ?? (n < 0x80 ? `\\x${hex(2)}` : n < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`);
  });
}

// owner says whose it is: the process, and what it runs in.
export function owner(pid, comm, group, held) {
  if (held === 'orphaned') return ['closed by its application', ''];
  if (held === 'unaccepted') return ['not yet accepted', ''];
  return [pid ? `${printable(comm)}[${pid}]` : '', printable(group)];
}

export function groupName(o) {
  if (o.pod_uid) return `pod ${o.pod_uid}`;
  if (o.container_id) return `container ${o.container_id.slice(0, 12)}`;
  return o.unit ?? '';
}

// ask has the agent answer. A path alone would not do where the page's address has a
// password in it.
export const ask = (path) => fetch(new URL(path, location.origin));

// el makes an element. Text is always text: names of processes are hostile.
export function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes ?? {})) {
    if (v === undefined || v === null || v === false) continue;
    if (k === 'class') e.className = v;
    else if (k.startsWith('on')) e.addEventListener(k.slice(2), v);
    else e.setAttribute(k, v === true ? '' : v);
  }
  e.append(...children.filter((c) => c !== undefined && c !== null && c !== false));
  return e;
}

// say sets a text if it is another: what does not change is not laid out again.
export function say(e, text) {
  if (e.textContent !== text) e.textContent = text;
}
