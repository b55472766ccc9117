// SPDX-License-Identifier: Apache-2.0

// The live page: what the agent's stream says goes into rows and deaths, what the user
// chooses into filters, and both are drawn at most once a frame.

import { AgentClock } from '/web/agentclock.js';
import { histogram } from '/web/charts.js';
import { showChips } from '/web/chips.js';
import { Deaths, deathFromAPI, maxDeaths } from '/web/deaths.js';
import { announce, byID, el, fetchJSON, setText } from '/web/dom.js';
import { showCauses, showDeaths } from '/web/feed.js';
import { censusText, idleText, middleboxTimeouts, pageTitle, retryText, shownText, tileFigures, zombieCount, ZombieAnnouncer } from '/web/figures.js';
import { filtersRows, formatFilters, parseFilters, showsCause } from '/web/filters.js';
import { followPage } from '/web/lifecycle.js';
import { maxRows } from '/web/names.js';
import { Rows } from '/web/rows.js';
import { Story } from '/web/story.js';
import { Stream } from '/web/stream.js';
import { Table } from '/web/table.js';
import { startThemeButton } from '/web/themebutton.js';
import { Tiles } from '/web/tiles.js';

const clock = new AgentClock(), rows = new Rows(), deaths = new Deaths(), zombieAnnouncer = new ZombieAnnouncer();
let summary = null; // the last event of this kind
let live = false; // the stream has begun
let retryAt = 0; // 0: the stream is not lost
let filters = parseFilters(location.search);

// ---- filters

// changeFilters takes new values of filters, by name. Each change is a step of the
// browser's history, unless it replaces the last.
function changeFilters(change, replace = false) {
  const before = filters;
  filters = { ...filters, ...change };
  const address = formatFilters(filters) || location.pathname;
  if (replace) history.replaceState(null, '', address);
  else history.pushState(null, '', address);
  applyFilters(before);
}

function applyFilters(before) {
  showChips(filters, changeFilters);
  tiles.press(filters);
  const search = byID('search');
  if (search.value.trim() !== filters.search) search.value = filters.search; // but a space may be typed
  requestDraw('table', 'tiles', 'causes', 'deaths');
  story.show(filters.cookie);
  if (filters.cause.join() !== before.cause.join()) fetchDeaths();
}

// ---- drawing

const dirty = new Set();
function requestDraw(...parts) {
  if (!dirty.size) requestAnimationFrame(drawDirty);
  for (const part of parts) dirty.add(part);
}

function drawDirty() {
  const parts = [...dirty];
  dirty.clear();
  for (const part of parts) draw[part]();
}

const draw = {
  tiles() {
    if (!summary) return;
    tiles.show(tileFigures(rows, summary, clock.now()));
    document.title = pageTitle(zombieCount(rows), summary.node);
  },
  table() {
    const view = rows.view(filters);
    table.show(view, filters.sort, filters.cookie);
    const total = rows.size < maxRows ? rows.size : summary?.total ?? rows.size;
    setText(byID('shown'), live ? shownText(view.length, rows.size, total, filters) : '');
    byID('none').hidden = view.length > 0 || !live;
    setText(byID('none'), filtersRows(filters) ? 'No connection matches the filters.' : 'There are no connections.');
  },
  causes() { showCauses(summary?.deaths ?? {}, () => filters, changeFilters); },
  deaths() { showDeaths(deaths.view(filters), filters, live); },
};

function showCensus() {
  if (summary) setText(byID('census'), censusText(summary.census, clock.now()));
}

function showRetry() {
  if (!retryAt) return;
  setText(byID('link'), retryText(retryAt, Date.now()));
  if (byID('notice').children.length) return;
  byID('notice').append('The connection to the agent is lost. The page shows the last data that it received. ',
    el('button', { type: 'button', class: 'quiet', onclick: () => stream.retryNow() }, 'Try now'));
}

// ---- deaths before the page was opened

let latestQuery = '';
async function fetchDeaths() {
  if (!summary) return; // the summary names the causes, and comes before the rows
  const causes = Object.keys(summary.deaths).filter((cause) => showsCause(filters, cause));
  const query = `limit=${maxDeaths}${causes.map((cause) => `&cause=${encodeURIComponent(cause)}`).join('')}`;
  latestQuery = query;
  const before = deaths.snapshot();
  if (!causes.length) { // no cause in the address exists
    deaths.replace(before, []);
    requestDraw('deaths');
    return;
  }
  try {
    const { ok, body } = await fetchJSON(`/api/v1/deaths?${query}`);
    if (!ok || latestQuery !== query) return;
    deaths.replace(before, body.deaths.map(deathFromAPI));
    requestDraw('deaths');
  } catch { /* the agent does not answer: the state of the stream says so */ }
}

// ---- the stream

const handlers = {
  rows(event) {
    if (event.at) clock.synchronise(event.at);
    const { changed, suspected } = rows.apply(event);
    if (event.all) {
      live = true;
      fetchDeaths();
      table.clearRecent();
    } else {
      for (const cookie of suspected) table.markRecent(cookie, clock.now());
    }
    for (const cookie of changed) story.rowChanged(cookie);
    for (const cookie of event.gone) story.rowGone(cookie);
    requestDraw('table', 'tiles');
  },
  summary(event) {
    if (!event.version && !event.verdicts) return; // the agent could not read its counts
    if (summary && event.version !== summary.version) location.reload(); // another agent has another page
    clock.synchronise(Date.parse(event.at));
    const missed = summary && event.missed > summary.missed;
    summary = event;
    if (missed) fetchDeaths(); // the stream may have left some out
    const timeouts = middleboxTimeouts(event.settings);
    setText(byID('node'), event.node);
    drawIdle(event.idle, timeouts[0]);
    setText(byID('idletext'), idleText(event.idle, timeouts));
    showCensus();
    requestDraw('tiles', 'table', 'causes');
  },
  history(event) { tiles.draw(event); },
  death(event) {
    const death = deathFromAPI(event.death);
    story.died(death);
    if (showsCause(filters, death.cause) && deaths.add([death])) requestDraw('deaths');
  },
  state(state, until) {
    const link = byID('link'), wasLost = link.dataset.state === 'lost', lost = state === 'lost';
    link.dataset.state = state;
    live = state === 'live' || (live && state === 'paused');
    retryAt = lost ? until : 0;
    document.body.classList.toggle('stale', lost);
    byID('notice').hidden = !lost;
    if (!lost) setText(link, state);
    showRetry();
    if (lost && !wasLost) announce('The agent does not answer. The page may show old data.');
    if (state === 'live' && wasLost) announce('The agent answers again.');
  },
};

// ---- start

startThemeButton();
const tiles = new Tiles(() => filters, changeFilters);
const drawIdle = histogram(byID('histogram'));
const table = new Table(byID('table'), byID('scroll'), {
  open: (cookie) => changeFilters({ cookie: cookie === filters.cookie ? '' : cookie }),
  sort: (column) => changeFilters({ sort: filters.sort === column ? `-${column}` : column }),
});
const story = new Story(byID('story'), {
  now: () => clock.now(),
  findDeath: (cookie) => deaths.find(cookie),
  close: () => changeFilters({ cookie: '' }),
  closed: (cookie) => table.focus(cookie),
});

byID('search').addEventListener('input', () => changeFilters({ search: byID('search').value.trim() }, true));
addEventListener('popstate', () => {
  const before = filters;
  filters = parseFilters(location.search);
  applyFilters(before);
});
addEventListener('keydown', (e) => {
  if (e.key === '/' && !e.ctrlKey && !e.metaKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName)) {
    e.preventDefault();
    byID('search').focus();
    byID('search').select();
  } else if (e.key === 'Escape' && filters.cookie) {
    story.leave();
  } else if (e.key === 'Escape' && e.target === byID('search')) {
    changeFilters({ search: '' }, true);
  }
});
setInterval(() => {
  showRetry();
  if (document.hidden || !live || retryAt) return;
  table.tick(clock.now());
  story.tick();
  showCensus();
  const news = zombieAnnouncer.next(zombieCount(rows), Date.now());
  if (news) announce(news);
  requestDraw('tiles');
}, 1000);

applyFilters(filters);
const stream = new Stream(['summary', 'history', 'rows', 'death'], handlers);
followPage(stream);
