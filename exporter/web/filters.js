// SPDX-License-Identifier: Apache-2.0

// The filters of the page: what the user has chosen to see. They are kept in the page's
// address, so that it can be shared and the browser's Back button works. verdict, risk and
// cause are queries of the API, too. Needs no DOM.

import { columns } from '/web/columns.js';
import { causes, risks, verdicts } from '/web/names.js';

// defaults selects everything, worst first, and opens no story.
const defaults = { verdict: [], risk: [], cause: [], search: '', sort: 'verdict', cookie: '' };

// anyRisk as a risk selects the rows that have one or more; anyTimeout as a cause selects
// all causes that are a timeout.
export const anyRisk = 'any';
const anyTimeout = 'timeout';

const names = (list) => new Set(list.map((entry) => entry.name));
const verdictNames = names(verdicts), riskNames = names(risks).add(anyRisk);
const timeouts = names(causes.filter((cause) => cause.timeout)), orderly = names(causes.filter((cause) => cause.orderly));
const maxCauses = 20;

// parseFilters reads the query of an address. What it does not understand it leaves out.
export function parseFilters(query) {
  const params = new URLSearchParams(query);
  const sort = params.get('sort') ?? '', cookie = params.get('conn') ?? '';
  return {
    verdict: params.getAll('verdict').filter((v) => verdictNames.has(v)),
    risk: params.getAll('risk').filter((r) => riskNames.has(r)),
    cause: params.getAll('cause').slice(0, maxCauses),
    search: params.get('q') ?? '',
    sort: Object.hasOwn(columns, sort.replace(/^-/, '')) ? sort : defaults.sort,
    cookie: /^[0-9a-f]{1,16}$/.test(cookie) ? cookie : '',
  };
}

// formatFilters is the reverse of parseFilters: '' for the defaults.
export function formatFilters(filters) {
  const params = new URLSearchParams();
  for (const name of ['verdict', 'risk', 'cause']) for (const value of filters[name]) params.append(name, value);
  if (filters.search) params.set('q', filters.search);
  if (filters.sort !== defaults.sort) params.set('sort', filters.sort);
  if (filters.cookie) params.set('conn', filters.cookie);
  const query = params.toString();
  return query && `?${query}`;
}

// toggled returns the list without the value, if that is in it, else with it.
export const toggled = (list, value) => (list.includes(value) ? list.filter((v) => v !== value) : [...list, value]);

// toggleTimeouts and toggleCause return the causes after a press on the tile of deaths, or
// on the chip of a cause.
export const toggleTimeouts = (chosen) => (chosen.includes(anyTimeout) ? [] : [anyTimeout]);
export const toggleCause = (chosen, cause) => toggled(chosen.filter((c) => c !== anyTimeout), cause);

export const isTimeout = (cause) => timeouts.has(cause);
export const isOrderly = (cause) => orderly.has(cause);

// choosesCause tells whether the user has chosen the cause, by name or with all timeouts.
export const choosesCause = ({ cause: chosen }, cause) => chosen.includes(cause) || (isTimeout(cause) && chosen.includes(anyTimeout));

// showsCause tells whether deaths of the cause are listed: where none is chosen, all but
// orderly ends.
export const showsCause = (filters, cause) => (filters.cause.length ? choosesCause(filters, cause) : !isOrderly(cause));

// filtersRows tells whether the filters leave out any rows.
export const filtersRows = ({ verdict, risk, search }) => verdict.length > 0 || risk.length > 0 || search !== '';

// rowFilter returns a function that tells whether a row matches the filters: one of the
// verdicts, one of the risks, and all words of the search.
export function rowFilter({ verdict, risk, search }) {
  const words = search.toLowerCase().split(/\s+/).filter(Boolean);
  const matchesRisk = (row) => row.risks?.length > 0 && (risk.includes(anyRisk) || row.risks.some((r) => risk.includes(r)));
  return (row) => (!verdict.length || verdict.includes(row.verdict))
    && (!risk.length || matchesRisk(row))
    && words.every((word) => searchText(row).includes(word));
}

// A row keeps the text that is searched; Rows deletes it when the row changes.
function searchText(row) {
  return (row.searchText ??= [row.local, row.remote, row.comm, row.pid, row.group, row.state, row.verdict, row.cookie, row.netns, row.held, ...(row.risks ?? [])]
    .join(' ').toLowerCase());
}
