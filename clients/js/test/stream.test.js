// What the client promises: each event once and in order, a text that is proven, and one POST per job.

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Tramontane } from "tramontane";
import { all, ASK, chunk, complete, EVENTS, frame, hangUp, JOB, refuse, serve, start, stream } from "./support/server.js";

const seqs = (events) => events.map(({ seq }) => seq);

test("an answer is streamed, and proven by length and SHA-256", async (t) => {
  const text = "Sète — 😀 blows";
  const { url, asked } = await serve(t, stream([start(), chunk(2, 0, text), complete(3, text)]));
  const answer = new Tramontane(url).stream(ASK);

  const events = await all(answer);

  assert.deepEqual(seqs(events), [1, 2, 3]);
  assert.equal(answer.text, text);
  assert.equal(answer.verified, true);
  assert.equal(answer.jobId, JOB);
  assert.equal(asked[0].method, "POST");
  assert.deepEqual(JSON.parse(asked[0].body), ASK);
});

test("after the POST only GET follows, each from the last event", async (t) => {
  const { url, asked } = await serve(
    t,
    stream([start(), chunk(2, 0, "one ")], { end: "cut" }),
    stream([], { end: "cut" }),
    stream([chunk(3, 4, "two ")]),
    stream([chunk(4, 8, "three"), complete(5, "one two three")]),
  );
  const answer = new Tramontane(url).stream(ASK);

  assert.deepEqual(seqs(await all(answer)), [1, 2, 3, 4, 5]);
  assert.equal(answer.text, "one two three");
  assert.deepEqual(asked.map(({ method, path, headers }) => [method, path, headers["last-event-id"]]), [
    ["POST", "/api/chat/stream", undefined],
    ["GET", EVENTS, "2"],
    ["GET", EVENTS, "2"],
    ["GET", EVENTS, "3"],
  ]);
});

test("a frame that was cut before its blank line is read again, not half", async (t) => {
  const half = chunk(3, 4, "two").slice(0, -1);
  const { url } = await serve(
    t,
    stream([start(), chunk(2, 0, "one "), half], { end: "cut" }),
    stream([chunk(3, 4, "two"), complete(4, "one two")]),
  );
  assert.deepEqual(seqs(await all(new Tramontane(url).stream(ASK))), [1, 2, 3, 4]);
});

test("a POST without an answer is repeated under the same key", async (t) => {
  const { url, asked } = await serve(t, hangUp, refuse(503), stream([start(), complete(2, "")]));

  await all(new Tramontane(url).stream(ASK));

  const keys = asked.map(({ headers }) => headers["idempotency-key"]);
  assert.match(keys[0], /^[0-9a-f]{32}$/);
  assert.deepEqual(keys, [keys[0], keys[0], keys[0]]);
  assert.deepEqual(asked.map(({ method }) => method), ["POST", "POST", "POST"]);
});

test("two streams are two jobs, and a key of one's own is kept out of the body", async (t) => {
  const done = stream([start(), complete(2, "")]);
  const { url, asked } = await serve(t, done, done, done);
  const client = new Tramontane(url);

  for (const key of [undefined, undefined, "mine"]) await all(client.stream({ ...ASK, idempotencyKey: key }));

  const [first, second, third] = asked.map(({ headers }) => headers["idempotency-key"]);
  assert.notEqual(first, second);
  assert.equal(third, "mine");
  assert.deepEqual(JSON.parse(asked[2].body), ASK);
});

test("an answer that was cut before its first event is not asked for again", async (t) => {
  const { url, asked } = await serve(t, stream([], { end: "cut" }), stream([start(), complete(2, "")]));
  await all(new Tramontane(url).stream(ASK));
  assert.deepEqual([asked[1].method, asked[1].path], ["GET", EVENTS]);
});

test("without Content-Location the first event says where to come back to", async (t) => {
  const { url, asked } = await serve(
    t,
    stream([start()], { end: "cut", headers: { "content-location": "" } }),
    stream([complete(2, "")]),
  );
  await all(new Tramontane(url).stream(ASK));
  assert.equal(asked[1].path, EVENTS);
});

test("events that are known already are dropped, and a partly known one is trimmed", async (t) => {
  const { url } = await serve(
    t,
    stream([start(), chunk(2, 0, "one "), chunk(3, 4, "two ")], { end: "cut" }),
    stream([start(), chunk(4, 0, "one two three", { from: 2 }), complete(5, "one two three")]),
  );
  const answer = new Tramontane(url).stream(ASK);

  const events = await all(answer);

  assert.deepEqual(seqs(events), [1, 2, 3, 4, 5]);
  assert.deepEqual(
    (({ from, off, content }) => ({ from, off, content }))(events[3]),
    { from: 4, off: 8, content: "three" },
  );
  assert.equal(answer.text, "one two three");
});

test("an attempt cuts the text to keep, then goes on", async (t) => {
  const text = "one two and more";
  const { url } = await serve(
    t,
    stream([
      start(),
      chunk(2, 0, "one two"),
      frame("attempt", 3, { attempt: 2, mode: "continue", keep: 7, reason: "worker_lost" }),
      chunk(4, 7, " then"),
      frame("attempt", 5, { attempt: 2, mode: "restart", keep: 8, reason: "upstream" }),
      chunk(6, 8, "and more"),
      complete(7, text),
    ]),
  );
  const answer = new Tramontane(url).stream(ASK);
  const shown = [];
  for await (const _ of answer) shown.push(answer.text);

  assert.deepEqual(shown, ["", "one two", "one two", "one two then", "one two ", text, text]);
  assert.equal(answer.verified, true);
});

test("an attempt may cover chunks that nobody needs any more", async (t) => {
  const again = { attempt: 2, mode: "restart", keep: 0, reason: "stall" };
  const { url } = await serve(
    t,
    stream([start(), chunk(2, 0, "one")], { end: "cut" }),
    stream([frame("attempt", 4, { ...again, from: 2 }), chunk(5, 0, "two"), complete(6, "two")]),
  );
  const answer = new Tramontane(url).stream(ASK);
  const events = await all(answer);

  assert.deepEqual([seqs(events), answer.text, answer.gaps], [[1, 2, 4, 5, 6], "two", 0]);
  assert.deepEqual([events[2].from, events[2].seq], [3, 4]);
});

test("a log that is past its retention says where the result is", async (t) => {
  const expired = (_, response) => {
    response.writeHead(410, { "content-type": "application/problem+json" });
    response.end(JSON.stringify({ code: "stream_expired", statusUrl: `/api/jobs/${JOB}` }));
  };
  const { url } = await serve(t, expired);
  const error = await all(new Tramontane(url).stream(JOB)).catch((error) => error);
  assert.deepEqual([error.code, error.status, error.problem.statusUrl], ["stream_expired", 410, `/api/jobs/${JOB}`]);
});

for (const [what, wrong] of Object.entries({
  "a missing event": chunk(4, 4, "three"),
  "missing text": chunk(3, 5, "three"),
  "an event that is no JSON": "event: chunk\ndata: {\nid: 3\n\n",
})) {
  test(`${what} is fetched again once from the cursor`, async (t) => {
    const { url, asked } = await serve(
      t,
      stream([start(), chunk(2, 0, "one "), wrong], { end: "open" }),
      stream([chunk(3, 4, "two"), complete(4, "one two")]),
    );
    const answer = new Tramontane(url).stream(ASK);
    await all(answer);
    assert.equal(answer.gaps, 1);
    assert.equal(answer.text, "one two");
    assert.equal(asked[1].headers["last-event-id"], "2");
  });

  test(`${what} that is missing again is an error`, async (t) => {
    const { url, asked } = await serve(t, stream([start(), chunk(2, 0, "one "), wrong]), stream([wrong]));
    await assert.rejects(all(new Tramontane(url).stream(ASK)), { code: "protocol_gap" });
    assert.equal(asked.length, 2);
  });
}

test("an event of another job is an error", async (t) => {
  const { url } = await serve(t, stream([start(), chunk(2, 0, "one", { jobId: "job_other" })]));
  await assert.rejects(all(new Tramontane(url).stream(ASK)), { code: "wrong_job" });
});

for (const [what, last] of Object.entries({
  hash: complete(3, "two"),
  length: complete(3, "one", { len: 4 }),
})) {
  test(`another ${what} than the server's is an error`, async (t) => {
    const { url } = await serve(t, stream([start(), chunk(2, 0, "one"), last]));
    const answer = new Tramontane(url).stream(ASK);
    await assert.rejects(all(answer), { code: "checksum_mismatch" });
    assert.equal(answer.verified, false);
  });
}

test("hashing can be one's own, or given up, and nobody calls the latter verified", async (t) => {
  const done = stream([start(), chunk(2, 0, "one"), complete(3, "one", { sha256: "mine" })]);
  const { url } = await serve(t, done, done);
  const client = new Tramontane(url);
  const own = client.stream(ASK, { sha256: (bytes) => (bytes.length == 3 ? "mine" : "") });
  const none = client.stream(ASK, { sha256: false });
  await all(own);
  await all(none);
  assert.deepEqual([own.verified, none.verified], [true, false]);
});

test("unknown events and fields are ignored, and their place in the log counts", async (t) => {
  const { url } = await serve(
    t,
    stream([
      "event: ping\ndata: not JSON\n\n",
      'event: status\ndata: {"type":"chat:status","status":"recovering"}\n\n',
      start({ colour: "blue" }),
      frame("weather", 2, { wind: "strong" }),
      complete(3, ""),
    ]),
  );
  assert.deepEqual(seqs(await all(new Tramontane(url).stream(ASK))), [1, 2, 3]);
});

test("204 ends a stream", async (t) => {
  const { url } = await serve(t, (_, response) => response.writeHead(204).end());
  const rest = new Tramontane(url).stream(JOB, { after: 9 });
  assert.equal(await rest.done, undefined);
});

test("nothing is asked for after the final event", async (t) => {
  const { url, asked } = await serve(t, stream([start(), complete(2, "")], { end: "open" }));
  await all(new Tramontane(url).stream(ASK));
  await asked[0].closed;
  assert.equal(asked.length, 1);
});

for (const status of [400, 401, 404, 409, 410, 422]) {
  test(`${status} is final, on a POST and on a GET`, async (t) => {
    const { url, asked } = await serve(t, refuse(status), refuse(status));
    const client = new Tramontane(url);
    const expected = { name: "TramontaneError", code: "some_code", status, message: `refused with ${status}` };
    await assert.rejects(all(client.stream(ASK)), expected);
    await assert.rejects(all(client.stream(JOB)), expected);
    assert.equal(asked.length, 2);
  });
}

for (const status of [408, 429, 500, 502, 503]) {
  test(`${status} is tried again`, async (t) => {
    const { url, asked } = await serve(t, stream([start()]), refuse(status), stream([complete(2, "")]));
    await all(new Tramontane(url).stream(ASK));
    assert.equal(asked.length, 3);
  });
}

test("an answer of another type is final", async (t) => {
  const { url } = await serve(t, stream([start()], { headers: { "content-type": "text/html" } }));
  await assert.rejects(all(new Tramontane(url).stream(ASK)), { code: "wrong_type" });
});

test("an answer that ends with its headers is a lost connection, whatever they say", async (t) => {
  const half = (_, response) => {
    response.writeHead(200, { "content-type": "text/eve", "content-location": "/api/jo" });
    response.flushHeaders();
    response.end();
  };
  const odd = (_, response) => response.writeHead(399).end();
  const { url, asked } = await serve(t, half, odd, stream([start(), complete(2, "")]));
  await all(new Tramontane(url).stream(ASK));
  assert.deepEqual(asked.map(({ method }) => method), ["POST", "POST", "POST"]);
});

test("the type may be written in capitals and with parameters", async (t) => {
  const headers = { "content-type": "Text/Event-Stream ; charset=x" };
  const { url } = await serve(t, stream([start(), complete(2, "")], { headers }));
  assert.equal((await all(new Tramontane(url).stream(ASK))).length, 2);
});

test("pauses grow from retry, are jittered up to 15 s, and an event resets them", async (t) => {
  t.mock.method(Math, "random", () => 0.5);
  const { url } = await serve(
    t,
    stream([start()]),
    hangUp,
    hangUp,
    hangUp,
    stream([chunk(2, 0, "a")]),
    stream([complete(3, "a")]),
  );
  const delays = [];
  await all(new Tramontane(url).stream(ASK, { onReconnect: ({ delay }) => delays.push(delay) }));
  assert.deepEqual(delays, [0.5, 1, 2, 4, 0.5]);
});

for (const [how, after, least, most] of [
  ["in seconds", "7", 7000, 7001],
  ["as a date", new Date(Date.now() + 60_000).toUTCString(), 50_000, 60_001],
  ["unless it is nonsense", "later", 0, 501],
]) {
  test(`Retry-After is honoured, ${how}`, async (t) => {
    const { url } = await serve(t, refuse(429, { headers: { "retry-after": after } }));
    const stop = new AbortController();
    const onReconnect = ({ delay }) => stop.abort(delay);
    const delay = await all(new Tramontane(url).stream(ASK, { onReconnect, signal: stop.signal })).catch((reason) => reason);
    assert.ok(delay >= least && delay <= most + 500, delay);
  });
}

test("three heartbeats missed end a connection that only looks alive", async (t) => {
  const { url, asked } = await serve(
    t,
    stream([start({ heartbeatMs: 50 })], { end: "open" }),
    stream([complete(2, "")]),
  );
  await all(new Tramontane(url).stream(ASK));
  assert.equal(asked.length, 2);
});

test("a reader that takes its time is not a silent server", async (t) => {
  t.mock.timers.enable({ apis: ["setInterval", "Date"] });
  let goOn;
  const { url, asked } = await serve(t, (request, response) => {
    stream([start()], { end: "open" })(request, response);
    goOn = () => response.write(complete(2, ""));
  });
  const events = new Tramontane(url).stream(ASK)[Symbol.asyncIterator]();
  await events.next();
  t.mock.timers.tick(10 * 60_000);
  goOn();
  assert.equal((await events.next()).value.seq, 2);
  assert.equal(asked.length, 1);
});

test("headers are asked for anew on each connection, and one that is not to be had is waited for", async (t) => {
  const { url, asked } = await serve(t, stream([start()]), stream([complete(2, "")]));
  let tokens = 0;
  const headers = async () => {
    if (++tokens == 2) throw new Error("the token server is away");
    return { authorization: `Bearer ${tokens}` };
  };
  await all(new Tramontane(url, { headers }).stream(ASK));
  assert.deepEqual(asked.map(({ headers }) => headers.authorization), ["Bearer 1", "Bearer 3"]);
});

test("our headers go to our server alone, whatever host an address names", async (t) => {
  const { url, asked } = await serve(t, stream([start(), complete(2, "")]));
  const client = new Tramontane(`${url}/prefix/`, { headers: { authorization: "secret" } });
  await all(client.stream({ eventsUrl: `https://elsewhere.example${EVENTS}?ticket=t` }));
  assert.equal(asked[0].path, `/prefix${EVENTS}?ticket=t`);
});

for (const [when, step] of Object.entries({
  "before the answer": () => {},
  "in the stream": stream([start()], { end: "open" }),
  "in a pause": refuse(429, { headers: { "retry-after": "60" } }),
})) {
  test(`an abort ${when} ends the stream with its reason`, async (t) => {
    const { url } = await serve(t, step);
    const stop = new AbortController();
    const reason = new Error("enough");
    const abort = () => setImmediate(() => stop.abort(reason));
    const answer = new Tramontane(url).stream(ASK, { signal: stop.signal, onConnect: abort, onReconnect: abort });
    if (when == "before the answer") abort();
    await assert.rejects(all(answer), reason);
  });
}

test("a loop that is left closes the connection", async (t) => {
  const { url, asked } = await serve(t, stream([start(), chunk(2, 0, "a")], { end: "open" }));
  for await (const event of new Tramontane(url).stream(ASK)) if (event.seq == 2) break;
  await asked[0].closed;
});

test("who takes no event reads nothing from the network", async (t) => {
  let written = 0;
  const big = "x".repeat(64 * 1024);
  const { url, asked } = await serve(t, async (request, response) => {
    stream([start()], { end: "open" })(request, response);
    for (let seq = 2; seq < 2000 && !response.destroyed; seq++) {
      written = seq;
      if (!response.write(chunk(seq, (seq - 2) * big.length, big))) {
        const drained = await Promise.race([once(response, "drain"), once(response, "close"), quiet()]);
        if (drained == "quiet") break;
      }
    }
  });
  const events = new Tramontane(url).stream(ASK)[Symbol.asyncIterator]();
  await events.next();
  await quiet(); // the server has met its reader's pace
  await quiet();
  assert.ok(written < 400, `${written} of 2000 chunks of 64 KB were taken`);
  await events.return();
  await asked[0].closed;
});

const quiet = () => new Promise((resolve) => setTimeout(resolve, 150, "quiet"));

test("after joins in the middle, and text that was given up is not called verified", async (t) => {
  const { url, asked } = await serve(t, stream([chunk(5, 40, "rest"), complete(6, "something else")]));
  const rest = new Tramontane(url).stream(JOB, { after: 4 });
  await all(rest);
  assert.equal(asked[0].headers["last-event-id"], "4");
  assert.deepEqual([rest.text, rest.verified], ["rest", false]);
});

test("after now takes whatever comes first, and goes on from there", async (t) => {
  const { url, asked } = await serve(
    t,
    stream([], { end: "cut" }),
    stream([chunk(7, 40, "rest ")], { end: "cut" }),
    stream([frame("attempt", 8, { keep: 42 }), chunk(9, 42, "more"), complete(10, "")]),
  );
  const rest = new Tramontane(url).stream(JOB, { after: "now" });
  await all(rest);
  assert.deepEqual(asked.map(({ path }) => path), [`${EVENTS}?after=now`, `${EVENTS}?after=now`, EVENTS]);
  assert.equal(rest.text, "remore");
});

test("an attempt may cut into what was before one joined", async (t) => {
  const frames = [chunk(5, 4, "eight on"), frame("attempt", 6, { keep: 2 }), chunk(7, 2, "more"), complete(8, "")];
  const { url } = await serve(t, stream(frames));
  const rest = new Tramontane(url).stream(JOB, { after: 4 });
  await all(rest);
  assert.equal(rest.text, "more");
});
