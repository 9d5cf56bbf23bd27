// The same events for who would rather be called than ask.

import { TramontaneError } from "./errors.js";
import { Stream } from "./stream.js";

const CALLBACKS = /^on(Start|Chunk|Tool|Attempt|Complete|Error)$/;

/** See index.d.ts. With callbacks it runs by itself, unless somebody has asked for its iterator at once. */
export class ChatStream extends Stream {
  #options;
  #done;
  /** Chunks that came since the last animation frame, as one. */
  #chunk;

  constructor(client, source, options, through) {
    super(client, source, options, through);
    this.#options = options;
    if (Object.keys(options).some((name) => CALLBACKS.test(name))) queueMicrotask(() => this.begun || this.#flow());
  }

  get done() {
    return (this.#done ??= this.#drain());
  }

  async #flow() {
    const { onError, signal } = this.#options;
    // An error must reach somebody; an abort is no news to who did it.
    await this.done.catch((error) => {
      if (!onError && !signal?.aborted) throw error;
    });
  }

  async #drain() {
    const { onError, signal } = this.#options;
    try {
      for await (const event of this) this.#tell(event);
      const { type, code, error, retryable } = this.final ?? {};
      if (type == "chat:error") throw new TramontaneError(code, error, { retryable, event: this.final });
      return this.final;
    } catch (error) {
      this.#flush();
      if (!signal?.aborted) onError?.(error, this);
      throw error;
    }
  }

  #tell(event) {
    const name = event.type.slice("chat:".length);
    if (name == "chunk") {
      this.#gather(event);
      return;
    }
    this.#flush();
    if (name != "error") this.#options[`on${name[0].toUpperCase()}${name.slice(1)}`]?.(event, this);
  }

  #gather(event) {
    if (this.#chunk) {
      const { seq, from = seq, off, content = "", thinking } = this.#chunk;
      this.#chunk = { ...event, from, off, content: content + (event.content ?? "") };
      if (thinking) this.#chunk.thinking = thinking + (event.thinking ?? "");
      return;
    }
    this.#chunk = event;
    // A hidden page has no frames, and neither has a server.
    const shown = globalThis.requestAnimationFrame && !globalThis.document?.hidden;
    if (shown) requestAnimationFrame(this.#flush);
    else this.#flush();
  }

  #flush = () => {
    const chunk = this.#chunk;
    this.#chunk = undefined;
    if (chunk) this.#options.onChunk?.(chunk, this);
  };
}
