// SPDX-License-Identifier: Apache-2.0

// The stream of events from the agent. When it is lost, the page connects again, after
// waits that grow, and the stream begins with everything. Needs no DOM.

const maxSilence = 35_000; // ms; the agent sends something every ten seconds
const checkInterval = 5000; // ms
const maxWait = 15_000; // ms

// The browser, which tests replace.
const browser = {
  connect: (url) => new EventSource(url),
  now: () => Date.now(),
  random: () => Math.random(),
  after: (ms, f) => setTimeout(f, ms),
  cancel: (timer) => clearTimeout(timer),
};

export class Stream {
  #kinds;
  #handlers;
  #env;
  #source = null; // null: not connected
  #failures = 0; // since the stream last began
  #lastEvent = 0;
  #retry = 0;

  // handlers has a function for each kind of event, which takes its data; and
  // state(state, retryAt), with connecting, live, lost or paused.
  constructor(kinds, handlers, env = browser) {
    this.#kinds = kinds;
    this.#handlers = handlers;
    this.#env = env;
    this.#checkLater();
  }

  // open connects to the agent, at once.
  open() {
    this.#close();
    if (this.#failures === 0) this.#handlers.state('connecting');
    const source = this.#env.connect(`/api/v1/stream?${this.#kinds.map((kind) => `event=${kind}`).join('&')}`);
    this.#source = source;
    this.#lastEvent = this.#env.now();
    const current = (f) => (event) => this.#source === source && f(event);
    source.onerror = current(() => this.#lost());
    for (const kind of this.#kinds) source.addEventListener(kind, current((event) => this.#receive(kind, JSON.parse(event.data))));
  }

  // pause disconnects from the agent, until resume.
  pause() {
    this.#close();
    this.#handlers.state('paused');
  }

  // resume connects again after a pause, and has no effect on a stream that is open.
  resume() {
    if (this.#source) return;
    this.#failures = 0;
    this.open();
  }

  // retryNow connects again without waiting any longer.
  retryNow() {
    this.#handlers.state('lost', this.#env.now());
    this.open();
  }

  #receive(kind, data) {
    this.#lastEvent = this.#env.now();
    if (data.all) { // the stream begins: it replaces what was known before
      this.#failures = 0;
      this.#handlers.state('live');
    }
    this.#handlers[kind](data);
  }

  #close() {
    this.#source?.close();
    this.#source = null;
    this.#env.cancel(this.#retry);
  }

  #lost() {
    this.#close();
    this.#failures++;
    const wait = Math.min(maxWait, 500 * 2 ** Math.min(this.#failures, 6)) * (0.75 + this.#env.random() / 2);
    this.#handlers.state('lost', this.#env.now() + wait);
    this.#retry = this.#env.after(wait, () => this.open());
  }

  #checkLater() {
    this.#env.after(checkInterval, () => {
      if (this.#source && this.#env.now() - this.#lastEvent > maxSilence) this.#lost();
      this.#checkLater();
    });
  }
}
