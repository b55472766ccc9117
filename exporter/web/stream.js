// SPDX-License-Identifier: Apache-2.0

// The stream of events from the agent. When the connection is lost, the page connects again,
// each time after a longer wait, and the agent sends all data anew. This module needs no DOM.

const maxSilence = 35_000; // ms without an event; the agent sends one every ten seconds
const checkInterval = 5000; // ms
const maxWait = 15_000; // ms

// The functions of the browser that the stream needs. Tests replace them.
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
  #failures = 0; // lost connections since the last successful one
  #lastEvent = 0;
  #retry = 0;

  // handlers has a function for each kind of event, which gets the event's data, and the
  // function state(state, retryAt). state is connecting, live, lost or paused; lost has the
  // time of the next attempt.
  constructor(kinds, handlers, env = browser) {
    this.#kinds = kinds;
    this.#handlers = handlers;
    this.#env = env;
    this.#checkLater();
  }

  // open connects to the agent at once.
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

  // pause disconnects from the agent until resume is called.
  pause() {
    this.#close();
    this.#handlers.state('paused');
  }

  // resume connects again after a pause. If the stream is open, it does nothing.
  resume() {
    if (this.#source) return;
    this.#failures = 0;
    this.open();
  }

  // retryNow connects again at once, without the rest of the wait.
  retryNow() {
    this.#handlers.state('lost', this.#env.now());
    this.open();
  }

  #receive(kind, data) {
    this.#lastEvent = this.#env.now();
    if (data.all) { // the first event has all data, which replaces the earlier data
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
