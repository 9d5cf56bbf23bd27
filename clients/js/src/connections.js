// What the server tells of one job, over one connection after another: some of it twice, nothing skipped.

import { call, pause } from "./calls.js";
import { gap, Lost, TramontaneError } from "./errors.js";
import { Parser } from "./sse.js";

/** What a browser says when a connection that looks alive may have died in its sleep. */
const WAKE = ["online", "pageshow", "visibilitychange"];
const KNOWN = /^(start|chunk|tool|attempt|complete|error)$/;

/**
 * Events as they are on the wire, from `stream.cursor` on, until the server says that there are no more.
 * One POST makes the job, and is repeated under its own key until it is answered; from then on only GET.
 */
export async function* connections(client, stream, { signal, onConnect, onReconnect }) {
  let retry = 500;
  let tries = 0;
  let connection;
  let waitingSince;

  async function connect() {
    const { url, cursor, body, key } = stream;
    const headers = { accept: "text/event-stream" };
    const init = { headers, signal: connection.signal };
    let path = url;
    if (!url) {
      path = "/api/chat/stream";
      Object.assign(init, { method: "POST", body });
      Object.assign(headers, { "content-type": "application/json", "idempotency-key": key });
    } else if (cursor) headers["last-event-id"] = cursor;
    else if (cursor == null) path += `${url.includes("?") ? "&" : "?"}after=now`;
    return call(client, path, init);
  }

  /** Believe the headers, once something has followed them: Chromium takes them cut short for whole ones. */
  function accept({ headers }) {
    const type = headers.get("content-type");
    if (!/^text\/event-stream *(;|$)/i.test(type)) {
      throw new TramontaneError("wrong_type", `expected an event stream, got ${type}`);
    }
    stream.url ||= headers.get("content-location");
    onConnect?.({ after: stream.cursor, tries }, stream);
  }

  /** Await the server under `look`. While its reader thinks, nobody waits for it. */
  async function heard(promise) {
    waitingSince = Date.now();
    const answer = await promise;
    waitingSince = Infinity;
    return answer;
  }

  /** Half-open connections raise nothing: three heartbeats missed are an end. */
  function look() {
    // A hidden page sleeps, its timers with it: it looks when it is shown again.
    if (Date.now() - waitingSince >= 3 * stream.heartbeat && !globalThis.document?.hidden) connection.abort();
  }

  const over = new AbortController();
  const timer = setInterval(look, 1e3);
  for (const name of WAKE) globalThis.addEventListener?.(name, look, over);
  signal?.addEventListener("abort", () => connection.abort(), over);
  try {
    for (;;) {
      connection = new AbortController();
      try {
        signal?.throwIfAborted();
        let response = await heard(connect());
        if (response.status == 204) return;
        const reader = response.body.getReader();
        const parser = new Parser();
        for (;;) {
          const { value, done } = await heard(reader.read());
          if (done) throw new Lost(new Error("the connection ended"));
          if (response) response = accept(response);
          const messages = parser.feed(value);
          retry = parser.retry ?? retry;
          for (const message of messages) {
            const event = read(message);
            if (!event?.seq) continue; // a hint, and not of the log
            tries = 0;
            yield event;
          }
        }
      } catch (error) {
        signal?.throwIfAborted();
        if (error instanceof TramontaneError) throw error;
        await pause(error instanceof Lost ? error : new Lost(error), retry * 2 ** tries++, signal, (delay, error) =>
          onReconnect?.({ delay, error, tries, after: stream.cursor }, stream),
        );
      } finally {
        connection.abort();
      }
    }
  } finally {
    clearInterval(timer);
    over.abort();
  }
}

/** The JSON of a frame, undefined for one of a kind that we do not know and cannot read. */
function read({ event, data }) {
  try {
    return JSON.parse(data);
  } catch {
    if (KNOWN.test(event)) throw gap(`${event} is no JSON`);
  }
}
