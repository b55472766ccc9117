// SPDX-License-Identifier: Apache-2.0

// The deaths that the page lists. Needs no DOM.

import { age, clock, endpoint, plural, spaced } from '/web/format.js';
import { isOrderly, isTimeout, showsCause } from '/web/filters.js';
import { ownership } from '/web/owners.js';

export const maxDeaths = 200;

// deathFromAPI returns a death of the API with the fields of a row, and its time in ms
// since 1970.
export const deathFromAPI = (d) => ({ ...d, ...ownership(d), at: Date.parse(d.at), local: endpoint(d.local), remote: endpoint(d.remote) });

// severity returns how a cause is colored: timeout, orderly or other.
export const severity = (cause) => (isTimeout(cause) ? 'timeout' : isOrderly(cause) ? 'orderly' : 'other');

// deathFacts returns what else is known of a death, as a list of texts.
export function deathFacts({ during, zombie_seconds: zombieFor, forecast_error_seconds: error, similar, similar_since: since }) {
  const facts = [];
  if (similar) facts.push(`and ${plural(similar, 'death')} alike since ${clock(Date.parse(since))}`);
  if (during) facts.push(`during ${spaced(during)}`);
  if (zombieFor) facts.push(`a zombie for ${age(zombieFor)}`);
  if (error === 0) facts.push('as forecast');
  else if (error) facts.push(`${age(Math.abs(error))} ${error < 0 ? 'before' : 'after'} the forecast`);
  return facts;
}

// causeCounts returns the causes to choose from as [cause, count], the most frequent
// first: those of which there are deaths, and those that the user has chosen.
export function causeCounts(deathsByCause, filters) {
  return Object.entries(deathsByCause)
    .filter(([cause, n]) => (n > 0 && !isOrderly(cause)) || filters.cause.includes(cause))
    .sort(([, a], [, b]) => b - a);
}

// withoutMost removes the oldest death of the cause that has most deaths, so that many
// deaths of one cause push out none of another. list is newest first.
function withoutMost(list) {
  const counts = new Map();
  for (const { cause } of list) counts.set(cause, (counts.get(cause) ?? 0) + 1);
  const [most] = [...counts].reduce((a, b) => (b[1] > a[1] ? b : a));
  return list.toSpliced(list.findLastIndex(({ cause }) => cause === most), 1);
}

// Deaths keeps maxDeaths, of each cause the newest.
export class Deaths {
  #list = []; // newest first

  // add adds deaths, and returns whether any was new. What was disconnected can connect
  // and die again: a death is known by its cookie and its time.
  add(deaths) {
    const key = (d) => `${d.cookie} ${d.at}`;
    const known = new Set(this.#list.map(key));
    const added = deaths.filter((d) => !known.has(key(d)) && known.add(key(d)));
    this.#list = [...added, ...this.#list].sort((a, b) => b.at - a.at);
    while (this.#list.length > maxDeaths) this.#list = withoutMost(this.#list);
    return added.length > 0;
  }

  // snapshot returns the deaths there are; replace puts other deaths in their place, and
  // keeps what was added since.
  snapshot() { return new Set(this.#list); }

  replace(snapshot, deaths) {
    this.#list = this.#list.filter((d) => !snapshot.has(d));
    this.add(deaths);
  }

  // find returns the last death of a connection, or undefined.
  find(cookie) { return this.#list.find((d) => d.cookie === cookie); }

  // view returns the deaths that match the filters, newest first.
  view(filters) { return this.#list.filter((d) => showsCause(filters, d.cause)); }
}
