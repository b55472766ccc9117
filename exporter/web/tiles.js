// SPDX-License-Identifier: Apache-2.0

// The tiles above the table: a number, what it means, and its last hour. Each is a button
// that sets a filter.

import { sparkline } from '/web/charts.js';
import { byID, el, setText, setTitle } from '/web/dom.js';
import { count } from '/web/format.js';
import { anyRisk, toggleTimeouts, toggled } from '/web/filters.js';
import { verdicts } from '/web/names.js';

const atRiskMeaning = 'A setting or a state of the connection delays the detection of a dead peer, or hides it.';
const meanings = Object.fromEntries(verdicts.map((v) => [v.name, v.meaning]));

export class Tiles {
  #tiles = {};

  // change takes new values of filters, by name; filters returns them as they are.
  constructor(filters, change) {
    const pressVerdict = (name) => () => change({ verdict: toggled(filters().verdict, name), risk: [] });
    for (const [name, title] of Object.entries({ zombie: 'Zombies', stuck: 'Stuck', blocked: 'Blocked', suspect: 'Suspects', stalled: 'Stalled', unread: 'Unread', unguarded: 'Unguarded' })) {
      this.#add(name, title, meanings[name], pressVerdict(name));
    }
    this.#add('at_risk', 'At risk', atRiskMeaning, () => change({ risk: filters().risk.length ? [] : [anyRisk], verdict: [] }));
    this.#add('deaths', 'Deaths, last hour', '', () => change({ cause: toggleTimeouts(filters().cause) }));
  }

  #add(name, label, title, onclick) {
    const number = el('span', { class: 'figure' }, '–'), text = el('span', { class: 'sub' });
    const spark = el('span', { class: 'spark', 'aria-hidden': 'true' });
    const button = el('button', { type: 'button', class: 'tile', 'data-name': name, 'aria-pressed': 'false', title, onclick },
      el('span', { class: 'label' }, label), number, text, spark);
    byID('tiles').append(button);
    this.#tiles[name] = { button, number, text, draw: sparkline(spark, name, name === 'deaths') };
  }

  // show shows the figures of tileFigures.
  show(figures) {
    for (const [name, { number, atLeast, text, title }] of Object.entries(figures)) {
      const tile = this.#tiles[name];
      setText(tile.number, (atLeast ? '≥ ' : '') + count(number));
      setText(tile.text, text);
      tile.button.classList.toggle('zero', number === 0);
      if (title) setTitle(tile.button, title);
    }
  }

  // press shows which filters are set.
  press(filters) {
    for (const [name, { button }] of Object.entries(this.#tiles)) {
      const pressed = name === 'at_risk' ? filters.risk.length > 0 : name === 'deaths' ? filters.cause.length > 0 : filters.verdict.includes(name);
      button.setAttribute('aria-pressed', pressed);
    }
  }

  // draw draws the last hour: an event of kind history.
  draw(history) {
    for (const [name, { draw }] of Object.entries(this.#tiles)) draw(history.at ?? [], history[name] ?? []);
  }
}
