// SPDX-License-Identifier: Apache-2.0

// The columns of the table of connections, and how rows are ordered by each. Needs no
// DOM.

import { verdicts } from '/web/names.js';
import { ownerText } from '/web/owners.js';

const rank = Object.fromEntries(verdicts.map((v, i) => [v.name, i])); // 0 is the worst

// A column has a title; compare, which puts the worst row first, and reads only what does
// not change as time passes; descending, if the worst row has the largest value; and
// number, if its cells are aligned to the right.
export const columns = {
  verdict: { title: 'Verdict', descending: true, compare: (a, b) => rank[a.verdict] - rank[b.verdict] || waitingSince(a) - waitingSince(b) },
  unanswered: { title: 'Unanswered', number: true, descending: true, compare: (a, b) => (b.unanswered ?? 0) - (a.unanswered ?? 0) },
  silent: { title: 'Silent', number: true, descending: true, compare: (a, b) => (a.heard_at ?? 0) - (b.heard_at ?? 0) },
  idle: { title: 'Idle', number: true, descending: true, compare: (a, b) => (a.data_at ?? 0) - (b.data_at ?? 0) },
  gives_up: { title: 'Gives up', number: true, compare: (a, b) => (a.gives_up_at || Infinity) - (b.gives_up_at || Infinity) || 0 },
  state: { title: 'State', compare: (a, b) => compareText(a.state, b.state) },
  local: { title: 'Local', compare: (a, b) => compareText(endpointKey(a, 'local'), endpointKey(b, 'local')) },
  remote: { title: 'Remote', compare: (a, b) => compareText(endpointKey(a, 'remote'), endpointKey(b, 'remote')) },
  owner: { title: 'Owner', compare: (a, b) => compareText(ownerKey(a), ownerKey(b)) },
};

// waitingSince is what `halfopen list` orders by within a verdict, the longest first:
// the silence of suspects and of what is worse, else the idle time.
const waitingSince = (row) => (rank[row.verdict] <= rank.suspect ? row.heard_at : row.data_at) ?? 0;

// Ten thousand rows take a hundred thousand comparisons: localeCompare needs seconds.
const compareText = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

// A row keeps the keys that it is ordered by. Its endpoints never change; Rows deletes
// ownerKey when the row changes. Rows without an owner come last.
const ownerKey = (row) => (row.ownerKey ??= ownerText(row) || '\uffff');
function endpointKey(row, end) {
  row.endpointKeys ??= {};
  return (row.endpointKeys[end] ??= row[end].replace(/\d+/g, (n) => n.padStart(5, '0'))); // numbers by value
}

// comparator returns how rows are ordered by a column, or in reverse if its name begins
// with a minus sign. Of equal rows the worst comes first, then the lower cookie.
export function comparator(sort) {
  const { compare } = columns[sort.replace('-', '')], worst = columns.verdict.compare;
  const sign = sort.startsWith('-') ? -1 : 1;
  return (a, b) => sign * compare(a, b) || worst(a, b) || compareText(a.cookie, b.cookie);
}
