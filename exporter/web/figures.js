// SPDX-License-Identifier: Apache-2.0

// The numbers and lines of text above, beside and below the table. Needs no DOM.

import { count, plural, spaced, wholeAge } from '/web/format.js';
import { filtersRows, isOrderly } from '/web/filters.js';
import { maxRows, verdicts } from '/web/names.js';

// Names of the risks that fit on the tile.
const shortRisks = {
  no_keepalive: 'no keepalive',
  keepalive_slower_than_middlebox: 'slow keepalive',
  user_timeout_overrides_keepcnt: 'user timeout',
  keepalive_masked_by_unacked_data: 'masked',
  close_wait_leak: 'close_wait leak',
  half_closed_unguarded: 'half-closed',
  one_probe_ends_it: 'one probe',
  accept_queue_full: 'accept queue',
  peer_host_silent: 'silent host',
};

const byCount = ([, a], [, b]) => b - a;
const increment = (counts, name) => { counts[name] = (counts[name] ?? 0) + 1; };

// tileFigures returns the number and the text of each tile, by its name, and a title for
// that of deaths. now is the agent's time. The agent sends the worst maxRows connections:
// where there are more, the summary has the numbers.
export function tileFigures(rows, summary, now) {
  const complete = rows.size < maxRows;
  const counts = Object.fromEntries(verdicts.map((v) => [v.name, 0]));
  const suspectEvidence = {}, riskCounts = {};
  const earliest = { zombie: Infinity, stuck: Infinity, blocked: Infinity, stalled: Infinity, unread: Infinity, unguarded: Infinity };
  let atRisk = 0;
  for (const row of rows.values()) {
    counts[row.verdict]++;
    if (row.risks?.length) atRisk++;
    for (const risk of row.risks ?? []) increment(riskCounts, risk);
    if (row.verdict === 'suspect') increment(suspectEvidence, row.evidence);
    if (row.verdict in earliest) {
      const since = row.verdict === 'unguarded' ? row.data_at : row.since;
      earliest[row.verdict] = Math.min(earliest[row.verdict], since || Infinity);
    }
  }
  const number = (verdict) => (complete ? counts[verdict] : summary.verdicts[verdict]);
  const lasting = (words, since) => (since === Infinity ? '' : `${words} ${wholeAge((now - since) / 1000)}`);
  const [commonest] = Object.entries(riskCounts).sort(byCount);
  return {
    zombie: { number: number('zombie'), text: lasting('oldest', earliest.zombie) },
    stuck: { number: number('stuck'), text: lasting('oldest', earliest.stuck) },
    blocked: { number: number('blocked'), text: lasting('oldest', earliest.blocked) },
    suspect: { number: number('suspect'), text: Object.entries(suspectEvidence).map(([evidence, n]) => `${n} ${spaced(evidence)}`).join(', ') },
    stalled: { number: number('stalled'), text: lasting('longest', earliest.stalled) },
    unread: { number: number('unread'), text: lasting('longest', earliest.unread) },
    unguarded: { number: number('unguarded'), text: lasting('idle up to', earliest.unguarded) },
    at_risk: { number: atRisk, atLeast: !complete, text: commonest ? `${count(commonest[1])} ${shortRisks[commonest[0]] ?? spaced(commonest[0])}` : '' },
    deaths: deathFigures(summary, now),
  };
}

function deathFigures({ deaths, deaths_since: since }, now) {
  const ended = Object.entries(deaths).filter(([cause, n]) => n > 0 && !isOrderly(cause)).sort(byCount);
  const causes = ended.map(([cause, n]) => `${count(n)} ${spaced(cause)}`);
  const observed = (now - Date.parse(since)) / 1000; // an hour, or since the agent started
  return {
    number: ended.reduce((sum, [, n]) => sum + n, 0),
    text: causes.length ? causes.slice(0, 2).join('\n') : observed < 3500 ? `in ${wholeAge(observed)}` : '',
    title: `Connections that ended other than by an orderly close${causes.length ? `: ${causes.join(', ')}` : ''}. Press to list the timeouts only.`,
  };
}

// zombieCount returns how many rows are zombies.
export function zombieCount(rows) {
  let n = 0;
  for (const row of rows.values()) if (row.verdict === 'zombie') n++;
  return n;
}

// pageTitle is the title of the browser's tab.
export const pageTitle = (zombies, node) => `${zombies ? `(${zombies}) ` : ''}halfopen${node ? ` · ${node}` : ''}`;

// shownText says how many rows of how many connections the table has.
export function shownText(shown, rows, total, filters) {
  if (filtersRows(filters)) return `${count(shown)} of ${count(total)}`;
  return rows < total ? `worst ${count(rows)} of ${count(total)}` : count(total);
}

// censusText says what the last census saw.
export const censusText = ({ at, sockets, namespaces }, now) => (at
  ? `${plural(sockets, 'socket')} in ${plural(namespaces, 'network namespace')}, census ${wholeAge((now - Date.parse(at)) / 1000)} ago`
  : 'the first census is running');

// middleboxTimeouts returns the shortest and the longest time for which a middlebox remembers
// a connection, in seconds. The agent's settings have them by destination.
export function middleboxTimeouts(settings) {
  const all = [settings.middlebox_timeout_seconds, ...Object.values(settings.middlebox_timeouts_seconds ?? {})];
  return [Math.min(...all), Math.max(...all)];
}

// idleText says how many connections a middlebox may have forgotten. counts[i] is of
// connections idle for up to bounds[i] seconds, the last of those idle for longer.
export function idleText({ bounds, counts }, [least, most]) {
  const sum = (list) => list.reduce((a, b) => a + b, 0), all = counts ?? [];
  const longer = (timeout) => count(sum(all.filter((_, i) => (bounds[i - 1] ?? 0) >= timeout)));
  const text = `${longer(least)} of ${count(sum(all))} have been idle for longer than`;
  if (least === most) return `${text} a NAT or load balancer may remember (${wholeAge(least)}).`;
  return `${text} some NAT or load balancer may remember (${wholeAge(least)}), and ${longer(most)} for longer than any (${wholeAge(most)}).`;
}

// retryText says when the page will connect to the agent again.
export function retryText(retryAt, now) {
  const seconds = Math.max(0, Math.ceil((retryAt - now) / 1000));
  return seconds ? `lost, retrying in ${seconds}s` : 'lost, retrying';
}

const announcementSpacing = 10_000; // ms

// ZombieAnnouncer says when the number of zombies has changed, but not all the time.
export class ZombieAnnouncer {
  #last = null;
  #at = -Infinity;

  // next returns a text, or '' while there is nothing to announce.
  next(zombies, now) {
    const before = this.#last;
    if (before !== null && (zombies === before || now - this.#at <= announcementSpacing)) return '';
    this.#last = zombies;
    if (before === null) return '';
    this.#at = now;
    return `${plural(zombies, 'zombie')} now, ${count(before)} before`;
  }
}
