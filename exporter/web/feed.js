// SPDX-License-Identifier: Apache-2.0

// The list of deaths, with a chip for each cause.

import { byID, el, replaceChildren, setText } from '/web/dom.js';
import { causeCounts, deathFacts, severity } from '/web/deaths.js';
import { clock, count, spaced } from '/web/format.js';
import { choosesCause, toggleCause } from '/web/filters.js';
import { ownerText } from '/web/owners.js';

// showDeaths shows deaths as Deaths.view returns them; live is false before there can be
// any.
export function showDeaths(deaths, filters, live) {
  for (const death of deaths) death.item ??= item(death);
  replaceChildren(byID('feed'), deaths.map((death) => death.item));
  const none = byID('nodeaths');
  none.hidden = deaths.length > 0 || !live;
  setText(none, filters.cause.length ? 'The agent remembers no death by this cause.' : 'No deaths yet. Orderly closes are not listed.');
}

function item(d) {
  const facts = deathFacts(d);
  return el('li', { 'data-severity': severity(d.cause), 'data-cookie': d.cookie },
    el('div', { class: 'line' },
      el('time', { datetime: new Date(d.at).toISOString(), class: 'muted' }, clock(d.at)),
      el('strong', null, spaced(d.cause)), d.errno ? el('span', { class: 'errno' }, d.errno) : null),
    el('div', { class: 'line' }, el('span', { class: 'ends' }, `${d.local} → ${d.remote}`)),
    el('div', { class: 'line muted' }, el('bdi', null, ownerText(d) || 'owner unknown'), facts.length ? ` · ${facts.join(', ')}` : ''));
}

// showCauses shows a chip for each cause; change takes the causes after a press on one,
// and filters returns them as they are.
export function showCauses(deathsByCause, filters, change) {
  const known = new Map([...byID('causes').children].map((chip) => [chip.dataset.cause, chip]));
  replaceChildren(byID('causes'), causeCounts(deathsByCause, filters()).map(([cause, n]) => {
    const chip = known.get(cause) ?? el('button', {
      type: 'button', class: 'chip', 'data-cause': cause, 'data-severity': severity(cause),
      onclick: () => change({ cause: toggleCause(filters().cause, cause) }),
    });
    setText(chip, `${spaced(cause)} ${count(n)}`);
    chip.setAttribute('aria-pressed', choosesCause(filters(), cause));
    return chip;
  }));
}
