// SPDX-License-Identifier: Apache-2.0

// Elements of the page.

export const byID = (id) => document.getElementById(id);

// el makes an element; attributes on… are event listeners. Children that are strings
// become text and never markup: names of processes are hostile.
export function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'class') e.className = value;
    else if (name.startsWith('on')) e.addEventListener(name.slice(2), value);
    else e.setAttribute(name, value === true ? '' : value);
  }
  e.append(...children.filter((child) => child !== undefined && child !== null && child !== false));
  return e;
}

// setText sets the text of an element if it differs: the browser lays out again only what
// has changed.
export function setText(e, text) {
  if (e.textContent !== text) e.textContent = text;
}

// setTitle does the same with the tooltip.
export function setTitle(e, title) {
  if (e.title !== title) e.title = title;
}

// replaceChildren does the same with the children of an element.
export function replaceChildren(e, children) {
  if (e.children.length !== children.length || children.some((child, i) => child !== e.children[i])) e.replaceChildren(...children);
}

// announce has a screen reader read a text.
export const announce = (text) => setText(byID('announcement'), text);

// fetchJSON requests a path of the agent's API. It throws where there is no answer, or one
// that is not JSON. The URL is absolute, because fetch refuses one that inherits a password
// from the page's address.
// Where the agent is busy, it asks once more when the agent says, and no sooner for
// another path.
let busyUntil = 0;
export async function fetchJSON(path) {
  let response;
  for (let tries = 2; tries > 0; tries--) {
    const wait = busyUntil - Date.now();
    if (wait > 0) await new Promise((resolve) => { setTimeout(resolve, wait); });
    response = await fetch(new URL(path, location.origin));
    const seconds = Number(response.headers.get('Retry-After'));
    if (!seconds) break;
    busyUntil = Date.now() + 1000 * seconds;
  }
  return { ok: response.ok, status: response.status, body: await response.json() };
}
