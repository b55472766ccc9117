// SPDX-License-Identifier: Apache-2.0

// The rows of the table: what the stream says of the connections. Needs no DOM.

import { comparator } from '/web/columns.js';
import { rowFilter } from '/web/filters.js';

const worse = new Set(['zombie', 'stuck', 'blocked', 'suspect']);

export class Rows {
  #byCookie = new Map();
  // All rows in the order that they were last shown in, then the new ones: to sort again
  // what is nearly in order takes a tenth of the time.
  #sorted = [];

  get size() { return this.#byCookie.size; }

  get(cookie) { return this.#byCookie.get(cookie); }

  values() { return this.#byCookie.values(); }

  // apply takes an event of kind rows. An event with `all` replaces all rows; the others
  // have new rows whole, changes of known rows, and the cookies of those that are gone.
  // Returns the cookies of the rows that changed, and of those whose change says that
  // they are suspects, or worse. A change of a row that is not known (any more) has no
  // effect, since a row is never shown in part.
  apply({ all, rows, gone }) {
    if (all) {
      this.#byCookie.clear();
      this.#sorted = [];
    }
    const changed = [], suspected = [];
    for (const change of rows) {
      const row = this.#byCookie.get(change.cookie);
      if (change.local !== undefined) this.#add(change);
      else if (row) Object.assign(row, change, { searchText: undefined, ownerKey: undefined });
      else continue;
      changed.push(change.cookie);
      if (worse.has(change.verdict)) suspected.push(change.cookie);
    }
    for (const cookie of gone) this.#byCookie.delete(cookie);
    return { changed, suspected };
  }

  #add(row) {
    this.#byCookie.set(row.cookie, row);
    this.#sorted.push(row);
  }

  // view returns the rows that match the filters, in their order.
  view(filters) {
    this.#sorted = this.#sorted.filter((row) => this.#byCookie.get(row.cookie) === row).sort(comparator(filters.sort));
    return this.#sorted.filter(rowFilter(filters));
  }
}
