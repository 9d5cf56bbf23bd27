// The client of a Tramontane server: jobs in, events out, whatever the network does.

import { call, pause } from "./calls.js";
import { ChatStream } from "./callbacks.js";
import { Lost, TramontaneError } from "./errors.js";
import { recall, remembered } from "./memory.js";
import { shared, together } from "./tabs.js";

export { TramontaneError };

/** See index.d.ts. */
export class Tramontane {
  #client;

  constructor(baseUrl = globalThis.location?.origin, { headers, fetch = globalThis.fetch } = {}) {
    const { origin, pathname } = new URL(baseUrl, globalThis.location?.href);
    const base = origin + pathname.replace(/\/+$/, "");
    // Whatever host an address names, our headers go to this server alone.
    const at = (url) => {
      const { pathname, search } = new URL(url, base);
      return (url.startsWith(`${base}/`) ? origin : base) + pathname + search;
    };
    this.#client = { at, fetch: (...how) => fetch(...how), headers };
  }

  async submit(request, { signal } = {}) {
    const { body, key } = asked(request);
    const headers = { "content-type": "application/json", "idempotency-key": key };
    for (let tries = 0; ; tries++) {
      try {
        return await this.#job("/api/jobs", { method: "POST", body, headers, signal });
      } catch (error) {
        signal?.throwIfAborted();
        if (!(error instanceof Lost)) throw error;
        await pause(error, 500 * 2 ** tries, signal);
      }
    }
  }

  stream(requestOrJob, options = {}) {
    const source = sourceOf(requestOrJob);
    if (source.url && options.after != null) source.cursor = options.after === "now" ? undefined : options.after;
    return this.#stream(source, options);
  }

  resume(storageKey, options = {}) {
    const source = recall(storageOf(options), storageKey);
    return source && this.#stream(source, { ...options, storageKey });
  }

  get(job, { wait = 0, signal } = {}) {
    return this.#once(() => this.#job(pathOf(job), { headers: wait ? { prefer: `wait=${wait}` } : {}, signal }));
  }

  cancel(job, { signal } = {}) {
    return this.#once(() => this.#job(`${pathOf(job)}/cancel`, { method: "POST", signal }));
  }

  async ticket(job, { ttl, signal } = {}) {
    const headers = { "content-type": "application/json" };
    const init = { method: "POST", headers, body: JSON.stringify(ttl ? { ttl } : {}), signal };
    const ticket = await this.#once(() => this.#json(`${pathOf(job)}/ticket`, init));
    return { ...ticket, url: this.#client.at(ticket.url) };
  }

  #stream(source, options) {
    const { signal, storageKey, tabs = true } = options;
    if (options.sha256 === undefined && !globalThis.crypto?.subtle) {
      throw new TypeError("no WebCrypto here (a page on plain http?): set sha256 to a function, or to false");
    }
    const through = (direct, stream) => {
      const told = tabs && together() ? shared(stream, direct, signal) : direct();
      return storageKey ? remembered(storageOf(options), storageKey, stream, told, signal) : told;
    };
    return new ChatStream(this.#client, source, options, through);
  }

  async #job(path, init) {
    const job = await this.#json(path, init);
    const urls = Object.entries(job).filter(([name, value]) => name.endsWith("Url") && value);
    return { ...job, id: job.jobId, ...Object.fromEntries(urls.map(([name, url]) => [name, this.#client.at(url)])) };
  }

  async #json(path, init) {
    const response = await call(this.#client, path, init);
    return response.json().catch((error) => {
      throw new Lost(error); // cut in the middle
    });
  }

  async #once(ask) {
    try {
      return await ask();
    } catch (error) {
      throw error instanceof Lost ? error.error : error;
    }
  }
}

/** The source of a stream: a request, a job (its id, or an object with `eventsUrl`), or the address of its events. */
function sourceOf(given) {
  if (typeof given == "string") return { url: given.includes("/") ? given : `${pathOf(given)}/events` };
  if (given.eventsUrl) return { url: given.eventsUrl, jobId: given.jobId };
  return asked(given);
}

function asked({ idempotencyKey = newKey(), ...body }) {
  return { body: JSON.stringify(body), key: idempotencyKey };
}

function pathOf(job) {
  return `/api/jobs/${encodeURIComponent(typeof job == "string" ? job : job.jobId)}`;
}

function storageOf({ storage = globalThis.sessionStorage }) {
  return storage;
}

/** 128 random bits. `randomUUID` is not there on pages of plain http. */
function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => (byte + 256).toString(16).slice(1)).join("");
}
