// Reads Server-Sent Events by the WHATWG rules (HTML 9.2), however the bytes were cut.

/** One connection's stream. What has no blank line yet is not dispatched. */
export class Parser {
  /** The cursor: an id counts from the blank line of its block on, with or without data in the block. */
  lastId = "";
  /** Milliseconds that the server asked to wait before coming back; undefined until it does. */
  retry;
  #decoder = new TextDecoder();
  #rest = "";
  #afterCR = false;
  #event = "";
  #data = [];
  #id = "";

  /** The messages that are complete with these bytes. */
  feed(bytes) {
    const messages = [];
    const text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return messages;
    // A CR ends its line at once; an LF that follows it, even in the next block, is part of that end.
    const lines = (this.#afterCR ? text.replace(/^\n/, "") : text).split(/\r\n?|\n/);
    this.#afterCR = text.endsWith("\r");
    lines[0] = this.#rest + lines[0];
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line) this.#field(line);
      else this.#dispatch(messages);
    }
    return messages;
  }

  #field(line) {
    const [, name, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (name == "data") this.#data.push(value);
    else if (name == "event") this.#event = value;
    else if (name == "id" && !value.includes("\0")) this.#id = value;
    else if (name == "retry" && /^\d+$/.test(value)) this.retry = Number(value);
  }

  #dispatch(messages) {
    this.lastId = this.#id;
    if (this.#data.length) {
      messages.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
    }
    this.#event = "";
    this.#data = [];
  }
}
