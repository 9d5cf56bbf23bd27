// Submitting, callbacks, and a place that is kept for the page after this one.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { test } from "node:test";
import { Tramontane, TramontaneError } from "tramontane";
import { all, ASK, chunk, complete, EVENTS, frame, hangUp, JOB, refuse, serve, start, stream } from "./support/server.js";

const accepted = (_, response) => {
  response.writeHead(202, { "content-type": "application/json" });
  response.end(JSON.stringify({ jobId: JOB, status: "queued", eventsUrl: EVENTS, cancelUrl: null }));
};

class Storage {
  #kept = new Map();
  room = Infinity;
  getItem = (key) => this.#kept.get(key) ?? null;
  removeItem = (key) => void this.#kept.delete(key);
  setItem(key, value) {
    if (value.length > this.room) throw new Error("QuotaExceededError");
    this.#kept.set(key, value);
  }
}

test("a job is submitted once, however often it has to be asked for", async (t) => {
  const half = (_, response) => response.writeHead(202).end('{"jobId":');
  const { url, asked } = await serve(t, hangUp, half, accepted, stream([start(), complete(2, "")]));
  const client = new Tramontane(url);

  const job = await client.submit(ASK);
  await all(client.stream(job));

  assert.deepEqual(job, { id: JOB, jobId: JOB, status: "queued", eventsUrl: url + EVENTS, cancelUrl: null });
  assert.equal(new Set(asked.slice(0, 3).map(({ headers }) => headers["idempotency-key"])).size, 1);
  assert.equal(asked[3].path, EVENTS);
});

test("a submit that is refused says why", async (t) => {
  const { url } = await serve(t, refuse(422, { code: "invalid_request" }));
  await assert.rejects(new Tramontane(url).submit(ASK), (error) => {
    assert.ok(error instanceof TramontaneError);
    assert.deepEqual([error.code, error.status, error.problem.detail], ["invalid_request", 422, "refused with 422"]);
    return true;
  });
});

test("get, cancel and ticket are asked once", async (t) => {
  const ticket = (_, response) => response.end(JSON.stringify({ ticket: "t", url: `${EVENTS}?ticket=t`, expiresAt: "…" }));
  const { url, asked } = await serve(t, accepted, accepted, ticket, refuse(503));
  const client = new Tramontane(url);

  await client.get(JOB, { wait: 30 });
  await client.cancel({ jobId: JOB });
  assert.equal((await client.ticket(JOB, { ttl: "5m" })).url, `${url}${EVENTS}?ticket=t`);
  await assert.rejects(client.get(JOB), { code: "some_code", status: 503 });

  assert.deepEqual(asked.map(({ method, path }) => `${method} ${path.replace(JOB, "…")}`), [
    "GET /api/jobs/…",
    "POST /api/jobs/…/cancel",
    "POST /api/jobs/…/ticket",
    "GET /api/jobs/…",
  ]);
  assert.equal(asked[0].headers.prefer, "wait=30");
  assert.equal(asked[2].body, '{"ttl":"5m"}');
});

test("callbacks make a stream run by itself, and done is its end", async (t) => {
  const { url } = await serve(
    t,
    stream([
      start(),
      chunk(2, 0, "one "),
      frame("tool", 3, { toolCalls: [] }),
      frame("attempt", 4, { keep: 4 }),
      chunk(5, 4, "two"),
      complete(6, "one two"),
    ]),
  );
  const called = [];
  const names = ["onConnect", "onStart", "onChunk", "onTool", "onAttempt", "onComplete", "onError"];
  const callbacks = names.map((name) => [name, (event, answer) => called.push([name, event.seq, answer.text])]);
  const answer = new Tramontane(url).stream(ASK, Object.fromEntries(callbacks));

  assert.equal((await answer.done).seq, 6);
  assert.deepEqual(called, [
    ["onConnect", undefined, ""],
    ["onStart", 1, ""],
    ["onChunk", 2, "one "],
    ["onTool", 3, "one "],
    ["onAttempt", 4, "one "],
    ["onChunk", 5, "one two"],
    ["onComplete", 6, "one two"],
  ]);
});

test("chunks of one animation frame come as one, and before what follows them", async (t) => {
  const frames = [];
  globalThis.requestAnimationFrame = (draw) => frames.push(draw);
  t.after(() => delete globalThis.requestAnimationFrame);
  const pieces = [chunk(2, 0, "one "), chunk(3, 4, "two "), chunk(4, 8, "three", { thinking: "hm" })];
  const { url } = await serve(t, stream([start(), ...pieces, complete(5, "one two three")]));
  const called = [];
  const onChunk = ({ from, seq, off, content }) => called.push([from, seq, off, content]);
  const onComplete = () => called.push("complete");

  await new Tramontane(url).stream(ASK, { onChunk, onComplete }).done;
  for (const draw of frames) draw();

  assert.deepEqual(called, [[2, 4, 0, "one two three"], "complete"]);
  assert.equal(frames.length, 1);
});

test("a job that failed is an event to a loop, and an error to onError and done", async (t) => {
  const failed = stream([start(), frame("error", 2, { error: "stopped", code: "cancelled", retryable: false })]);
  const { url } = await serve(t, failed, failed);
  const client = new Tramontane(url);
  const told = [];

  assert.equal((await all(client.stream(ASK))).at(-1).code, "cancelled");
  const answer = client.stream(ASK, { onError: (error) => told.push(error) });
  await assert.rejects(answer.done, { code: "cancelled", message: "stopped", retryable: false });

  assert.equal(told.length, 1);
  assert.equal(told[0].event.seq, 2);
});

test("an error that nobody takes is not swallowed", async (t) => {
  const { url } = await serve(t, refuse(404));
  // In a process of its own: a test runner takes unhandled rejections for itself.
  const program = `import { Tramontane } from "tramontane"; new Tramontane("${url}").stream("${JOB}", { onChunk() {} })`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", program], { cwd: new URL(".", import.meta.url) });
  let said = "";
  for await (const block of child.stderr) said += block;
  assert.match(said, /TramontaneError: refused with 404/);
});

test("an abort is nobody's error", async (t) => {
  const { url } = await serve(t, () => {});
  const stop = new AbortController();
  const told = [];
  const aborted = new Tramontane(url).stream(JOB, { onError: (one) => told.push(one), signal: stop.signal });
  stop.abort();
  await assert.rejects(aborted.done, { name: "AbortError" });
  assert.deepEqual(told, []);
});

test("a stream is read once", async (t) => {
  const { url } = await serve(t, stream([start(), complete(2, "")]));
  const answer = new Tramontane(url).stream(ASK, { onChunk() {} });
  assert.equal((await all(answer)).length, 2);
  assert.throws(() => answer[Symbol.asyncIterator](), TypeError);
});

test("without WebCrypto one has to say how to hash, and is told so at once", (t) => {
  const crypto = Object.getOwnPropertyDescriptor(globalThis, "crypto");
  Object.defineProperty(globalThis, "crypto", { value: { getRandomValues: globalThis.crypto.getRandomValues.bind(globalThis.crypto) }, configurable: true });
  t.after(() => Object.defineProperty(globalThis, "crypto", crypto));
  const client = new Tramontane("http://127.0.0.1:1");
  assert.throws(() => client.stream(ASK), /set sha256/);
  client.stream(ASK, { sha256: false });
});

test("a page that comes back goes on from where it was, text included", async (t) => {
  const { url, asked } = await serve(
    t,
    stream([start(), chunk(2, 0, "one "), chunk(3, 4, "two ")], { end: "open" }),
    stream([chunk(4, 8, "three"), complete(5, "one two three")]),
  );
  const storage = new Storage();
  const client = new Tramontane(url);
  const leaving = new AbortController();
  const first = client.stream(ASK, { storage, storageKey: "chat", signal: leaving.signal });
  await assert.rejects(async () => {
    for await (const { seq } of first) if (seq == 3) leaving.abort();
  });

  const second = new Tramontane(url).resume("chat", { storage });
  assert.equal(second.text, "one two ");
  await all(second);

  assert.deepEqual([second.text, second.verified], ["one two three", true]);
  assert.equal(asked[1].headers["last-event-id"], "3");
  assert.equal(new Tramontane(url).resume("chat", { storage }), undefined);
});

test("a page that left before the answer asks again under the same key", async (t) => {
  let arrived;
  const first = new Promise((resolve) => (arrived = resolve));
  const { url, asked } = await serve(t, arrived, stream([start(), complete(2, "")]));
  const storage = new Storage();
  const leaving = new AbortController();
  const client = new Tramontane(url);
  const left = client.stream(ASK, { storage, storageKey: "chat", signal: leaving.signal }).done;
  await first;

  await client.resume("chat", { storage }).done;

  leaving.abort();
  await assert.rejects(left);
  assert.deepEqual(asked.map(({ method }) => method), ["POST", "POST"]);
  assert.equal(asked[0].headers["idempotency-key"], asked[1].headers["idempotency-key"]);
  assert.equal(asked[0].body, asked[1].body);
});

test("where the text has no room, the place is kept without it and the text is read again", async (t) => {
  const text = "x".repeat(1000);
  const { url, asked } = await serve(
    t,
    stream([start(), chunk(2, 0, text)], { end: "open" }),
    stream([start(), chunk(2, 0, text), complete(3, text)]),
  );
  const storage = new Storage();
  storage.room = 500;
  const leaving = new AbortController();
  const client = new Tramontane(url);
  const first = client.stream(ASK, { storage, storageKey: "chat", signal: leaving.signal });
  await assert.rejects(async () => {
    for await (const { seq } of first) if (seq == 2) leaving.abort();
  });

  const second = client.resume("chat", { storage });
  await second.done;

  assert.equal(asked[1].headers["last-event-id"], undefined);
  assert.equal(second.verified, true);
});

test("what was refused for good is not resumed", async (t) => {
  const { url } = await serve(t, refuse(422));
  const storage = new Storage();
  const client = new Tramontane(url);
  await assert.rejects(client.stream(ASK, { storage, storageKey: "chat" }).done);
  assert.equal(client.resume("chat", { storage }), undefined);
});
