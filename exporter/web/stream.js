// SPDX-License-Identifier: Apache-2.0

// The stream of the agent, for as long as the page lives: when it is lost it is
// asked for again, later and later, and begins with everything.

const silence = 35_000; // the agent says something every ten seconds
const longest = 15_000;
// A page nobody looks at takes nothing from the agent after that. A browser has at most
// six connections to a server, for all its tabs: they would have no other.
const unseen = 10_000;

export function follow(events, on) {
  let source = null, failures = 0, heard = 0, retry = 0, hide = 0;

  const heardNow = () => { heard = Date.now(); };
  const close = () => {
    source?.close();
    source = null;
    clearTimeout(retry);
  };
  const lost = () => {
    close();
    failures++;
    const wait = Math.min(longest, 500 * 2 ** Math.min(failures, 6)) * (0.75 + Math.random() / 2);
    on.state('lost', Date.now() + wait);
    retry = setTimeout(open, wait);
  };
  function open() {
    close();
    if (failures === 0) on.state('connecting');
    source = new EventSource('/api/v1/stream?' + events.map((e) => 'event=' + e).join('&'));
    heardNow();
    source.onerror = lost;
    for (const name of events) {
      source.addEventListener(name, (e) => {
        heardNow();
        const data = JSON.parse(e.data);
        if (data.all) { // everything that was known before is to be forgotten
          failures = 0;
          on.state('live');
        }
        on[name](data);
      });
    }
  }
  setInterval(() => {
    if (source && Date.now() - heard > silence) lost();
  }, 5000);
  const pause = () => {
    close();
    on.state('paused');
  };
  const look = () => {
    clearTimeout(hide);
    if (document.hidden) {
      hide = setTimeout(pause, unseen);
    } else if (!source) {
      failures = 0;
      open();
    }
  };
  document.addEventListener('visibilitychange', look);
  addEventListener('pagehide', pause); // the browser may keep the page, for the way back
  addEventListener('pageshow', look); // also after it was opened in the background
  addEventListener('online', look);
  open();
  return {
    now: () => {
      on.state('lost', Date.now());
      open();
    },
  };
}
