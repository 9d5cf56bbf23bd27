// One connection for all tabs that follow a job. One tab leads: it holds the lock and tells the others what it hears.

/** A leader whose own reader takes longer than this (ms) over an event lets another tab lead. */
const SLOW = 2e3;
/** A leader that is asked and does not answer within this (ms) is asleep. */
const ANSWER = 2e3;
/** Events that wait for a follower's own reader; what is more it fetches again. */
const INBOX = 1000;

/** Whether tabs can find each other here. */
export const together = () => Boolean(globalThis.navigator?.locks && globalThis.BroadcastChannel && globalThis.document);

/**
 * The events that `direct()` would give, from whichever tab has them.
 *
 * Followers fill what they missed by a short connection of their own: the leader keeps no history for them.
 */
export async function* shared(stream, direct, signal) {
  let tab = stream.url ? new Tab(stream) : undefined;
  let slow;
  try {
    if (tab) yield* follow(tab, stream, direct, signal);
    for await (const event of direct()) {
      tab ??= new Tab(stream); // a job that has only now been made
      tab.tell(event);
      slow = setTimeout(tab.yieldLead, SLOW);
      yield event;
      clearTimeout(slow);
    }
  } finally {
    clearTimeout(slow);
    tab?.close();
  }
}

/** What another tab tells, until the lead is ours or nobody answers. */
async function* follow(tab, stream, direct, signal) {
  signal?.addEventListener("abort", tab.wake, tab.over);
  let asked = true;
  while (!tab.leads) {
    signal?.throwIfAborted();
    const event = tab.inbox.shift();
    if (event && !((event.from ?? event.seq) > stream.cursor + 1)) {
      yield event;
    } else if (tab.head > stream.cursor) {
      for await (const missed of direct()) {
        yield missed;
        if (stream.cursor >= tab.head || tab.leads) break;
      }
      if (stream.cursor < tab.head && !tab.leads) return;
    } else if (await tab.news(asked ? ANSWER : 3 * stream.heartbeat)) {
      asked = false;
    } else if (asked) {
      return;
    } else {
      tab.ask();
      asked = true;
    }
  }
}

class Tab {
  inbox = [];
  /** The last event that some tab has. */
  head = 0;
  leads = false;
  over = new AbortController();
  #channel;
  #release;
  #wake;

  constructor(stream) {
    const name = `tramontane ${stream.url.split("?")[0]}`;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data, stream);
    const lead = () =>
      new Promise((resolve) => {
        this.#release = resolve;
        this.leads = true;
        this.wake();
      });
    // Refused when we close first, which is what `over` is for.
    navigator.locks.request(name, { signal: this.over.signal }, lead).catch(() => {});
    this.ask();
  }

  ask() {
    this.#channel.postMessage({ ask: true });
  }

  tell(event) {
    if (this.leads) this.#channel.postMessage({ event });
  }

  /** True when something came within so many milliseconds, false when it was silent. */
  news(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve(true);
      };
    });
  }

  wake = () => this.#wake?.();

  yieldLead = () => {
    this.leads = false;
    this.#release?.();
  };

  close() {
    this.yieldLead();
    this.over.abort();
    this.#channel.close();
  }

  #hear({ ask, event, head }, stream) {
    if (ask) {
      if (this.leads) this.#channel.postMessage({ head: stream.cursor ?? 0 });
      return;
    }
    if (!this.leads) {
      if (event && this.inbox.length < INBOX) this.inbox.push(event);
      this.head = Math.max(this.head, head ?? event.seq);
      this.wake();
    }
  }
}
