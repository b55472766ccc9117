// SPDX-License-Identifier: Apache-2.0

// The agent's clock, which may differ from this machine's. Needs no DOM.

const forgetAfter = 60_000; // ms
const clockWasSet = 5000; // ms

export class AgentClock {
  #local;
  #ahead = 0; // of the local clock, ms
  #synchronised = 0;

  // local returns this machine's time in ms since 1970.
  constructor(local = Date.now) {
    this.#local = local;
  }

  // now returns the agent's time in ms since 1970.
  now() { return this.#local() + this.#ahead; }

  // synchronise takes the agent's time from a message that has just arrived. The message
  // that was fastest is the most exact, but clocks drift, and may be set.
  synchronise(agentTime) {
    const local = this.#local(), ahead = agentTime - local;
    if (ahead > this.#ahead || local - this.#synchronised > forgetAfter || Math.abs(ahead - this.#ahead) > clockWasSet) {
      this.#ahead = ahead;
      this.#synchronised = local;
    }
  }
}
