// SPDX-License-Identifier: Apache-2.0

// Numbers, durations, times, addresses and names as text. Needs no DOM.

// count returns a whole number with a comma before each three digits: 12,345.
export const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ',');

// plural returns a number of things: 1 probe, 3 probes.
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

// spaced returns a name of the API as words: keepalive_timeout is "keepalive timeout".
export const spaced = (name) => name.replaceAll('_', ' ');

const minute = 60_000, hour = 60 * minute, day = 24 * hour;

// age returns a duration in seconds as `halfopen list` prints it (Go's human.Age), in
// one or two units, rounded down: 450ms, 2.4s, 12s, 2m30s, 12m, 2h11m, 3d4h, 400d.
// Clocks may differ, so a negative duration is 0s.
export function age(seconds) {
  // Exact milliseconds: 1.001 * 1000 is a little less than 1001.
  const ms = Math.floor(Math.max(0, seconds) * 1000 * (1 + 2 * Number.EPSILON));
  const units = (large, l, small, s) => {
    const rest = Math.floor((ms % large) / small);
    return `${Math.floor(ms / large)}${l}${rest ? `${rest}${s}` : ''}`;
  };
  if (ms === 0) return '0s';
  if (ms < 1000) return `${ms}ms`;
  if (ms < 10_000) return `${Math.floor(ms / 100) / 10}s`;
  if (ms < minute) return `${Math.floor(ms / 1000)}s`;
  if (ms < 10 * minute) return units(minute, 'm', 1000, 's');
  if (ms < hour) return `${Math.floor(ms / minute)}m`;
  if (ms < day) return units(hour, 'h', minute, 'm');
  if (ms < 100 * day) return units(day, 'd', hour, 'h');
  return `${Math.floor(ms / day)}d`;
}

// wholeAge is age without fractions of a second, for durations that tick once a second.
export const wholeAge = (seconds) => age(Math.floor(seconds));

// setting returns a configured duration in milliseconds exactly, in one unit, as Go's
// human.Setting does: 2h, 75s, 1500ms.
export function setting(ms) {
  if (ms === 0) return '0s';
  const [size, unit] = [[hour, 'h'], [minute, 'm'], [1000, 's'], [1, 'ms']].find(([size]) => ms % size === 0);
  return `${ms / size}${unit}`;
}

// bytes returns a size: 512 B, 1.5 KiB, 3.0 MiB.
export function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / 1024 / 1024).toFixed(1)} MiB`;
}

const months = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec'];

// clock returns the local time of day of a moment in ms since 1970; with the day, if
// that is not today: 12:00:13, 21 Nov 12:00:13.
export function clock(ms, now = Date.now()) {
  const at = new Date(ms), two = (n) => String(n).padStart(2, '0');
  const date = (d) => `${d.getDate()} ${months[d.getMonth()]}`;
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(':');
  return date(at) === date(new Date(now)) ? time : `${date(at)} ${time}`;
}

// endpoint returns an end of a connection of the API as text, as Go's netip.AddrPort
// does: 10.0.0.1:443, [2001:db8::1]:443.
export const endpoint = (e) => (e.ip.includes(':') ? `[${e.ip}]:${e.port}` : `${e.ip}:${e.port}`);

// printable escapes what is not visible, and the backslash, as `halfopen list` does:
// control characters, characters that turn the direction of writing, and those that
// combine with the one before. A process chooses its own name.
const invisible = /[^\p{L}\p{N}\p{P}\p{S} ]|[\p{Default_Ignorable_Code_Point}\\]/gu;
const escapes = { '\\': '\\\\', '\x07': '\\a', '\b': '\\b', '\f': '\\f', '\n': '\\n', '\r': '\\r', '\t': '\\t', '\v': '\\v' };
export function printable(name) {
  return (name ?? '').replace(invisible, (c) => {
    const n = c.codePointAt(0), hex = (digits) => n.toString(16).padStart(digits, '0');
    return escapes[c] ?? (n < 0x80 ? `\\x${hex(2)}` : n < 0x10000 ? `\\u${hex(4)}` : `\\U${hex(8)}`);
  });
}
