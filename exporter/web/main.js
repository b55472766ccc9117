// SPDX-License-Identifier: Apache-2.0

import { histogram, repaint, sparkline } from '/web/charts.js';
import { ask as answer, clock, count, el, endpoint, groupName, meaning, owner, plural, rank, risks, say, span, spaced, whole } from '/web/format.js';
import { Story } from '/web/story.js';
import { follow } from '/web/stream.js';
import { Table, columns } from '/web/table.js';

const $ = (id) => document.getElementById(id);
const maxDeaths = 200;
const maxRows = 10000; // as many as the agent tells, if there are more

// What the agent has told.
const rows = new Map(); // by cookie
let summary = null;
let deaths = []; // newest first
let ahead = 0; // of the agent's clock, ms
const now = () => Date.now() + ahead;

// What is looked at: kept in the address, so that it can be shared, and gone back to.
const initial = { verdict: [], risk: [], cause: [], q: '', sort: 'verdict', conn: '' };
let asked = { ...initial };

function readAddress() {
  const p = new URLSearchParams(location.search);
  asked = {
    verdict: p.getAll('verdict').filter((v) => Object.hasOwn(meaning, v)),
    risk: p.getAll('risk').filter((r) => Object.hasOwn(risks, r) || r === 'any'),
    cause: p.getAll('cause').slice(0, 20),
    q: p.get('q') ?? '',
    sort: Object.hasOwn(columns, (p.get('sort') ?? '').replace(/^-/, '')) ? p.get('sort') : initial.sort,
    conn: /^[0-9a-f]{1,16}$/.test(p.get('conn') ?? '') ? p.get('conn') : '',
  };
}

function address() {
  const p = new URLSearchParams();
  for (const name of ['verdict', 'risk', 'cause']) for (const v of asked[name]) p.append(name, v);
  if (asked.q) p.set('q', asked.q);
  if (asked.sort !== initial.sort) p.set('sort', asked.sort);
  if (asked.conn) p.set('conn', asked.conn);
  return p.size ? `?${p}` : location.pathname;
}

function ask(change, replace) {
  const causes = change.cause && change.cause.join() !== asked.cause.join();
  Object.assign(asked, change);
  if (replace) history.replaceState(null, '', address());
  else history.pushState(null, '', address());
  apply();
  if (causes) fetchDeaths();
}

const toggled = (list, v) => (list.includes(v) ? list.filter((x) => x !== v) : [...list, v]);

// ---- tiles

const tiles = {};
function makeTiles() {
  const tile = (name, title, about, press) => {
    const number = el('span', { class: 'figure' }, '–'), sub = el('span', { class: 'sub' });
    const spark = el('span', { class: 'spark', 'aria-hidden': 'true' });
    const button = el('button', { type: 'button', class: 'tile', 'data-name': name, 'aria-pressed': 'false', title: about, onclick: press },
      el('span', { class: 'label' }, title), number, sub, spark);
    $('tiles').append(button);
    tiles[name] = { button, number, sub, draw: sparkline(spark, name, name === 'deaths') };
  };
  const verdict = (name, title) => tile(name, title, meaning[name], () => ask({ verdict: toggled(asked.verdict, name), risk: [] }));
  verdict('zombie', 'Zombies');
  verdict('suspect', 'Suspects');
  verdict('stalled', 'Stalled');
  verdict('unguarded', 'Unguarded');
  tile('at_risk', 'At risk', 'A setting or a condition makes a dead peer go unnoticed, or hides it.',
    () => ask({ risk: asked.risk.length ? [] : ['any'], verdict: [] }));
  tile('deaths', 'Deaths, last hour', '',
    () => ask({ cause: asked.cause.includes('timeout') ? [] : ['timeout'] }));
}

function showTiles() {
  if (!summary) return;
  const all = rows.size < maxRows;
  const counts = Object.fromEntries(Object.keys(rank).map((v) => [v, 0]));
  const by = { zombie: {}, suspect: {} }, riskCounts = {};
  let atRisk = 0, oldest = Infinity, idlest = Infinity, stalledSince = Infinity;
  for (const r of rows.values()) {
    counts[r.verdict]++;
    if (r.risks?.length) {
      atRisk++;
      for (const k of r.risks) riskCounts[k] = (riskCounts[k] ?? 0) + 1;
    }
    if (by[r.verdict]) by[r.verdict][r.evidence] = (by[r.verdict][r.evidence] ?? 0) + 1;
    if (r.verdict === 'zombie') oldest = Math.min(oldest, r.since || Infinity);
    if (r.verdict === 'unguarded') idlest = Math.min(idlest, r.data_at || Infinity);
    if (r.verdict === 'stalled') stalledSince = Math.min(stalledSince, r.since || Infinity);
  }
  const age = (since, words) => (since === Infinity ? '' : `${words} ${whole((now() - since) / 1000)}`);
  const set = (name, n, sub, more = '') => {
    say(tiles[name].number, more + count(n));
    say(tiles[name].sub, sub);
    tiles[name].button.classList.toggle('zero', n === 0);
  };
  const figure = (v) => (all ? counts[v] : summary.verdicts[v]);
  const kinds = (b) => Object.entries(b).map(([k, n]) => `${n} ${spaced(k)}`).join(', ');
  set('zombie', figure('zombie'), age(oldest, 'oldest'));
  set('suspect', figure('suspect'), kinds(by.suspect));
  set('stalled', figure('stalled'), age(stalledSince, 'longest'));
  set('unguarded', figure('unguarded'), age(idlest, 'idle up to'));
  const named = { no_keepalive: 'no keepalive', keepalive_slower_than_middlebox: 'slow keepalive', user_timeout_overrides_keepcnt: 'user timeout', keepalive_masked_by_unacked_data: 'masked', close_wait_leak: 'close_wait leak' };
  const [most] = Object.entries(riskCounts).sort((a, b) => b[1] - a[1]);
  set('at_risk', atRisk, most ? `${count(most[1])} ${named[most[0]]}` : '', all ? '' : '≥ ');
  const ended = Object.entries(summary.deaths).filter(([c, n]) => n && c !== 'closed').sort((a, b) => b[1] - a[1]);
  const since = (now() - Date.parse(summary.deaths_since)) / 1000;
  const causes = ended.map(([c, n]) => `${count(n)} ${spaced(c)}`);
  set('deaths', ended.reduce((sum, [, n]) => sum + n, 0),
    causes.length ? causes.slice(0, 2).join('\n') : since < 3500 ? `in ${whole(since)}` : '');
  const about = `Connections that did not end in order${causes.length ? `: ${causes.join(', ')}` : ''}. Shows those of timeouts only.`;
  if (tiles.deaths.button.title !== about) tiles.deaths.button.title = about;
  document.title = `${counts.zombie ? `(${counts.zombie}) ` : ''}halfopen${summary.node ? ` · ${summary.node}` : ''}`;
}

// ---- the table

// All rows as they were in order last, then those that are new: to sort again what
// nearly is in order takes a tenth of the time.
let sorted = [];

function wanted() {
  const words = asked.q.toLowerCase().split(/\s+/).filter(Boolean);
  const reversed = asked.sort.startsWith('-'), order = columns[asked.sort.replace('-', '')].order, worst = columns.verdict.order;
  const tie = (a, b) => (a.cookie < b.cookie ? -1 : 1);
  sorted = sorted.filter((r) => rows.get(r.cookie) === r);
  sorted.sort((a, b) => (reversed ? order(b, a) : order(a, b)) || worst(a, b) || tie(a, b));
  const view = [];
  for (const r of sorted) {
    if (asked.verdict.length && !asked.verdict.includes(r.verdict)) continue;
    if (asked.risk.length && !(r.risks?.length && (asked.risk.includes('any') || r.risks.some((k) => asked.risk.includes(k))))) continue;
    if (words.length) {
      r.text ??= [r.local, r.remote, r.comm, r.pid, r.group, r.state, r.verdict, r.cookie, r.netns, r.held, ...(r.risks ?? [])].join(' ').toLowerCase();
      if (!words.every((w) => r.text.includes(w))) continue;
    }
    view.push(r);
  }
  return view;
}

const filters = () => asked.verdict.length + asked.risk.length + (asked.q ? 1 : 0);

function showTable() {
  const view = wanted();
  table.show(view, asked.sort, asked.conn);
  const total = rows.size < maxRows ? rows.size : summary?.total ?? rows.size;
  say($('shown'), live ? (filters() ? `${count(view.length)} of ${count(total)}` : rows.size < total ? `worst ${count(rows.size)} of ${count(total)}` : count(total)) : '');
  $('none').hidden = view.length > 0 || !live;
  say($('none'), filters() ? 'No connection is like that.' : 'There are no connections.');
}

function chip(label, remove, title) {
  return el('button', { type: 'button', class: 'chip', title, onclick: remove, 'aria-label': `Remove filter: ${label}` }, label, el('span', { 'aria-hidden': 'true' }, ' ×'));
}

function showFilters() {
  const chips = [];
  for (const v of asked.verdict) chips.push(chip(v, () => ask({ verdict: toggled(asked.verdict, v) })));
  for (const k of asked.risk) chips.push(chip(k === 'any' ? 'any risk' : spaced(k), () => ask({ risk: toggled(asked.risk, k) }), risks[k]));
  $('chips').replaceChildren(...chips);
  for (const [name, t] of Object.entries(tiles)) {
    const on = name === 'at_risk' ? asked.risk.length > 0 : name === 'deaths' ? asked.cause.length > 0 : asked.verdict.includes(name);
    t.button.setAttribute('aria-pressed', on);
  }
  if ($('search').value.trim() !== asked.q) $('search').value = asked.q; // not while a space is typed
}

// ---- deaths

const timeout = (cause) => cause.endsWith('_timeout');
const severity = (cause) => (timeout(cause) ? 'timeout' : cause === 'closed' ? 'orderly' : 'other');
const wantsCause = (c) => (!asked.cause.length && c !== 'closed') || asked.cause.includes(c) || (asked.cause.includes('timeout') && timeout(c));

function showCauses() {
  const counts = Object.entries(summary?.deaths ?? {}).filter(([c, n]) => (n && c !== 'closed') || asked.cause.includes(c)).sort((a, b) => b[1] - a[1]);
  const known = new Map([...$('causes').children].map((c) => [c.dataset.cause, c]));
  const list = counts.map(([cause, n]) => {
    const b = known.get(cause) ?? el('button', { type: 'button', class: 'chip', 'data-cause': cause, 'data-severity': severity(cause),
      onclick: () => ask({ cause: toggled(asked.cause.filter((c) => c !== 'timeout'), cause) }) });
    say(b, `${spaced(cause)} ${count(n)}`);
    b.setAttribute('aria-pressed', asked.cause.includes(cause) || (timeout(cause) && asked.cause.includes('timeout')));
    return b;
  });
  if (list.length !== $('causes').children.length || list.some((b, i) => b !== $('causes').children[i])) $('causes').replaceChildren(...list);
}

function deathItem(d) {
  const [who, where] = owner(d.pid, d.comm, d.group, d.held);
  const facts = [];
  if (d.during) facts.push(`during ${spaced(d.during)}`);
  if (d.zombie_seconds) facts.push(`a zombie for ${span(d.zombie_seconds)}`);
  if (d.forecast_error_seconds !== null) {
    const miss = d.forecast_error_seconds;
    facts.push(miss === 0 ? 'as forecast' : `${span(Math.abs(miss))} ${miss < 0 ? 'before' : 'after'} the forecast`);
  }
  return el('li', { 'data-severity': severity(d.cause), 'data-cookie': d.cookie },
    el('div', { class: 'line' },
      el('time', { datetime: new Date(d.at).toISOString(), class: 'muted' }, clock(d.at)),
      el('strong', null, spaced(d.cause)), d.errno ? el('span', { class: 'errno' }, d.errno) : null),
    el('div', { class: 'line' }, el('span', { class: 'ends' }, `${d.local} → ${d.remote}`)),
    el('div', { class: 'line muted' }, el('bdi', null, [who, where].filter(Boolean).join(' ') || 'owner unknown'), facts.length ? ` · ${facts.join(', ')}` : ''));
}

// flat makes of a death of the API what the page shows.
function flat(d) {
  const held = d.accepted === false ? 'unaccepted' : d.uid === null ? 'orphaned' : '';
  return {
    ...d, at: Date.parse(d.at), local: endpoint(d.local), remote: endpoint(d.remote), held,
    pid: d.process?.pid, comm: d.process?.comm, group: groupName(d),
  };
}

function showFeed() {
  const list = deaths.filter((d) => wantsCause(d.cause));
  for (const d of list) d.item ??= deathItem(d);
  const old = $('feed').children;
  if (old.length !== list.length || list.some((d, i) => d.item !== old[i])) $('feed').replaceChildren(...list.map((d) => d.item));
  $('nodeaths').hidden = list.length > 0 || !live;
  say($('nodeaths'), asked.cause.length ? 'No such death is remembered.' : 'None yet. Connections that end in order are not listed.');
}

function bury(list) {
  const key = (d) => `${d.cookie} ${d.at}`; // what was disconnected can be connected again
  const known = new Set(deaths.map(key));
  const fresh = list.filter((d) => !known.has(key(d)));
  if (!fresh.length) return;
  deaths = [...fresh, ...deaths].sort((a, b) => b.at - a.at).slice(0, maxDeaths);
}

let fetching = '';
async function fetchDeaths() {
  if (!summary) return; // it tells what causes there are, and comes before the rows
  const causes = Object.keys(summary.deaths).filter(wantsCause);
  if (!causes.length) { // the address has another
    deaths = [];
    render('feed');
    return;
  }
  const query = `limit=${maxDeaths}` + causes.map((c) => `&cause=${encodeURIComponent(c)}`).join('');
  fetching = query;
  const before = new Set(deaths);
  try {
    const response = await answer(`/api/v1/deaths?${query}`);
    if (!response.ok) return;
    const list = (await response.json()).deaths;
    if (fetching !== query) return; // somebody has asked for others since
    deaths = deaths.filter((d) => !before.has(d)); // those told meanwhile stay
    bury(list.map(flat));
    render('feed');
  } catch { /* the stream tells that the agent is not there */ }
}

// ---- drawing, at most once a frame

let live = false;
const dirty = new Set();
function render(...what) {
  if (!dirty.size) requestAnimationFrame(draw);
  for (const w of what) dirty.add(w);
}
function draw() {
  const what = new Set(dirty);
  dirty.clear();
  if (what.has('tiles')) showTiles();
  if (what.has('table')) showTable();
  if (what.has('causes')) showCauses();
  if (what.has('feed')) showFeed();
}

function apply() {
  showFilters();
  render('table', 'tiles', 'causes', 'feed');
  story.show(asked.conn);
}

// ---- what the agent tells

let spoken = { at: 0, zombies: null };
function speak(text) { say($('said'), text); }
function speakZombies() { // but not all the time
  let zombies = 0;
  for (const r of rows.values()) if (r.verdict === 'zombie') zombies++;
  if (spoken.zombies !== null && zombies !== spoken.zombies && Date.now() - spoken.at > 10_000) {
    speak(`${plural(zombies, 'zombie')}, ${count(spoken.zombies)} before`);
    spoken.at = Date.now();
    spoken.zombies = zombies;
  }
  spoken.zombies ??= zombies;
}

const told = {
  rows(data) {
    if (data.all) {
      rows.clear();
      sorted = [];
      table.fresh.clear();
      live = true;
      fetchDeaths();
    }
    if (data.at) synchronise(data.at);
    for (const change of data.rows) {
      const r = rows.get(change.cookie);
      if (!data.all && (change.verdict === 'zombie' || change.verdict === 'suspect')) table.fresh.set(change.cookie, now());
      if (r) {
        Object.assign(r, change);
        r.text = r.said = undefined;
      } else {
        rows.set(change.cookie, change);
        sorted.push(change);
      }
      story.touched(change.cookie);
    }
    for (const cookie of data.gone) {
      rows.delete(cookie);
      story.touched(cookie, true);
    }
    render('table', 'tiles');
  },
  summary(data) {
    if (!data.version && !data.verdicts) return;
    if (summary && data.version !== summary.version) location.reload(); // another agent, with another page
    synchronise(Date.parse(data.at));
    const missed = summary && data.missed > summary.missed;
    summary = data;
    if (missed) fetchDeaths(); // some may be among what the stream could not tell
    say($('node'), data.node);
    drawIdle(data.idle, data.settings.middlebox_timeout_seconds);
    const over = data.idle.counts?.filter((_, i) => (data.idle.bounds[i - 1] ?? 0) >= data.settings.middlebox_timeout_seconds).reduce((a, b) => a + b, 0) ?? 0;
    const all = data.idle.counts?.reduce((a, b) => a + b, 0) ?? 0;
    say($('idlesaid'), `${count(over)} of ${count(all)} idle for longer than a NAT or load balancer may remember (${whole(data.settings.middlebox_timeout_seconds)}).`);
    showCensus();
    render('tiles', 'table', 'causes');
  },
  history(data) {
    for (const [name, t] of Object.entries(tiles)) t.draw(data.at ?? [], data[name] ?? []);
  },
  death(data) {
    const d = flat(data.death);
    story.ended(d);
    if (!wantsCause(d.cause)) return;
    bury([d]);
    render('feed');
  },
  state(state, until) {
    const before = $('link').dataset.state;
    $('link').dataset.state = state;
    const lost = state === 'lost';
    live = state === 'live' || (live && state === 'paused');
    document.body.classList.toggle('stale', lost);
    $('notice').hidden = !lost;
    retryAt = lost ? until : 0;
    if (state !== 'lost') say($('link'), state);
    showRetry();
    if (lost && before !== 'lost') speak('The agent does not answer any more. What is shown may be old.');
    if (state === 'live' && before === 'lost') speak('The agent answers again.');
  },
};

let synchronised = 0;
function synchronise(at) {
  const d = at - Date.now();
  // The message that was the quickest knows best; but clocks may be set.
  if (d > ahead || Date.now() - synchronised > 60_000 || Math.abs(d - ahead) > 5000) {
    ahead = d;
    synchronised = Date.now();
  }
}

let retryAt = 0;
function showRetry() {
  if (!retryAt) return;
  const wait = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  say($('link'), wait ? `lost, again in ${wait}s` : 'lost, asking again');
  if (!$('notice').children.length) {
    $('notice').append('The stream from the agent is lost: what is shown is as it was then. ', el('button', { type: 'button', class: 'quiet', onclick: () => stream.now() }, 'Try now'));
  }
}

function showCensus() {
  if (!summary) return;
  const c = summary.census;
  say($('census'), c.at ? `${plural(c.sockets, 'socket')} in ${plural(c.namespaces, 'network namespace')}, census ${whole((now() - Date.parse(c.at)) / 1000)} ago` : 'first census under way');
}

// ---- theme

const themes = ['auto', 'light', 'dark'];
function showTheme() {
  const theme = document.documentElement.dataset.theme ?? 'auto';
  say($('theme'), `Theme: ${theme}`);
}
$('theme').addEventListener('click', () => {
  const theme = themes[(themes.indexOf(document.documentElement.dataset.theme ?? 'auto') + 1) % themes.length];
  if (theme === 'auto') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem('theme', theme);
  } catch { /* then it lasts as long as the page */ }
  showTheme();
  repaint();
});
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', repaint);

// ---- begin

makeTiles();
showTheme();
const drawIdle = histogram($('histogram'));
const table = new Table($('table'), $('scroll'), {
  open: (cookie) => ask({ conn: cookie === asked.conn ? '' : cookie }),
  sort: (name) => ask({ sort: asked.sort === name ? '-' + name : name }),
});
const story = new Story($('story'), {
  now,
  death: (cookie) => deaths.find((d) => d.cookie === cookie),
  close: () => ask({ conn: '' }),
  closed: (cookie) => table.focus(cookie),
});

$('search').addEventListener('input', () => ask({ q: $('search').value.trim() }, true));
addEventListener('popstate', () => {
  const before = asked.cause.join();
  readAddress();
  apply();
  if (asked.cause.join() !== before) fetchDeaths();
});
addEventListener('keydown', (e) => {
  if (e.key === '/' && !e.ctrlKey && !e.metaKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(e.target.tagName)) {
    e.preventDefault();
    $('search').focus();
    $('search').select();
  } else if (e.key === 'Escape' && asked.conn) {
    story.leave();
  } else if (e.key === 'Escape' && e.target === $('search')) {
    ask({ q: '' }, true);
  }
});
setInterval(() => {
  showRetry();
  if (document.hidden || !live || document.body.classList.contains('stale')) return;
  table.tick(now());
  story.tick();
  showCensus();
  speakZombies();
  render('tiles');
}, 1000);

readAddress();
apply();
const stream = follow(['summary', 'history', 'rows', 'death'], told);
