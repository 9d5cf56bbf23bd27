// A job's events, each once and in order, and the text that they make.

import { connections } from "./connections.js";
import { gap, TramontaneError } from "./errors.js";

/** See index.d.ts. */
export class Stream {
  text = "";
  cursor = 0;
  heartbeat = 15e3;
  gaps = 0;
  verified = false;
  begun = false;
  #told;
  #sha256;

  constructor(client, source, options = {}, through = (direct) => direct()) {
    Object.assign(this, source);
    this.begin ??= this.cursor === 0 || source.text != null ? 0 : Infinity;
    this.#sha256 = options.sha256 ?? digest;
    this.#told = () => through(() => connections(client, this, options), this);
  }

  [Symbol.asyncIterator]() {
    if (this.begun) throw new TypeError("a stream is read once");
    this.begun = true;
    return this.#events();
  }

  async *#events() {
    for (let refetched; !this.final; refetched = this.cursor) {
      try {
        for await (const told of this.#told()) {
          const event = this.#take(told);
          if (event?.type == "chat:complete") await this.#verify(event);
          if (event) yield event;
          if (this.final) break;
        }
        return;
      } catch (error) {
        // One clean fetch from the cursor; the same gap again is not ours to mend.
        if (error?.code != "protocol_gap" || refetched === this.cursor) throw error;
        this.gaps++;
      }
    }
  }

  /** Take an event in: what of it is new, or nothing. */
  #take(event) {
    const { type, seq, from = seq, jobId, off, keep } = event;
    this.jobId ??= jobId;
    if (jobId != this.jobId) throw new TramontaneError("wrong_job", `${jobId} is not ${this.jobId}`);
    const last = this.cursor ?? from - 1;
    if (seq <= last) return;
    if (from > last + 1) throw gap(`${from} came after ${last}`);
    if (from <= last) event = { ...event, from: last + 1 };
    if (type == "chat:start") {
      this.url ||= event.eventsUrl;
      this.heartbeat = event.heartbeatMs ?? this.heartbeat;
    } else if (type == "chat:chunk") {
      if (!this.text) this.begin = Math.min(this.begin, off);
      const known = this.begin + this.text.length - off;
      if (known < 0) throw gap(`no text before ${off}`);
      const content = (event.content ?? "").slice(known);
      if (known) event = { ...event, off: off + known, content };
      this.text += content;
    } else if (type == "chat:attempt") {
      this.begin = Math.min(this.begin, keep);
      this.text = this.text.slice(0, keep - this.begin);
    } else if (/:(complete|error)$/.test(type)) this.final = event;
    this.cursor = seq;
    return event;
  }

  /** Prove that the text is whole; where its beginning was given up there is nothing to prove. */
  async #verify({ len, sha256 }) {
    if (this.begin) return;
    const hash = this.#sha256;
    if (len != this.text.length || (hash && (await hash(new TextEncoder().encode(this.text))) != sha256)) {
      throw new TramontaneError("checksum_mismatch", "the text is not the server's");
    }
    this.verified = !!hash;
  }
}

async function digest(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => (byte + 256).toString(16).slice(1)).join("");
}
