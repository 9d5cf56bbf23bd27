// A server that does what a test says: one step per request, and it notes what it was asked.

import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";

export const JOB = "job_01M81Q6FHJFR0VVZC9KGTNZ5YV";
export const EVENTS = `/api/jobs/${JOB}/events`;
export const ASK = { messages: [{ role: "user", content: "Hello!" }] };

/** A frame as the server writes it. */
export function frame(name, seq, fields = {}) {
  const data = { type: `chat:${name}`, jobId: JOB, seq, attempt: 1, ...fields };
  return `event: ${name}\ndata: ${JSON.stringify(data)}\nid: ${seq}\n\n`;
}

export const start = (fields) => frame("start", 1, { eventsUrl: EVENTS, heartbeatMs: 15000, ...fields });
export const chunk = (seq, off, content, fields) => frame("chunk", seq, { off, content, tokenCount: seq, ...fields });

export function complete(seq, text, fields) {
  const sha256 = createHash("sha256").update(text).digest("hex");
  return frame("complete", seq, { finishReason: "stop", len: text.length, sha256, ...fields });
}

/** A step: answer with a stream of these frames, then end it (or cut the connection, or leave it open). */
export function stream(frames, { end = "end", headers = {} } = {}) {
  return (request, response) => {
    const location = request.method == "POST" ? { "content-location": EVENTS, "x-job-id": JOB } : {};
    response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", ...location, ...headers });
    response.write("retry: 1\n: tramontane 1 hb=15000\n\n" + frames.join(""), () => {
      if (end == "end") response.end();
      if (end == "cut") request.socket.destroy();
    });
  };
}

/** A step: refuse. */
export function refuse(status, { code = "some_code", headers = {} } = {}) {
  return (_, response) => {
    response.writeHead(status, { "content-type": "application/problem+json", ...headers });
    response.end(JSON.stringify({ code, detail: `refused with ${status}` }));
  };
}

/** A step: take the request and answer nothing. */
export const hangUp = (request) => request.socket.destroy();

/** Start a server with these steps; it is gone when the test is. What comes after the last step is refused with 418. */
export async function serve(t, ...steps) {
  const asked = [];
  const server = createServer(async (request, response) => {
    const step = steps[asked.length] ?? refuse(418);
    const one = { method: request.method, path: request.url, headers: request.headers, closed: once(response, "close") };
    asked.push(one);
    one.body = "";
    for await (const block of request) one.body += block;
    step(request, response);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return { url: `http://127.0.0.1:${server.address().port}`, asked, server };
}

/** All events of a stream. */
export async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}
