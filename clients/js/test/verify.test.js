// The cases that every verifier is held to, and what is JavaScript's own: forms of body, headers and secrets.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { test } from "node:test";
import { InvalidSignature, verifyWebhook } from "tramontane/webhooks";

const file = new URL("../../../tests/vectors/webhooks.json", import.meta.url);
const { cases } = JSON.parse(readFileSync(file, "utf8"));
const sent = cases.find((one) => one.name === "sent");

function bytes(body) {
  if (typeof body === "string") return Buffer.from(body);
  return "base64" in body
    ? Buffer.from(body.base64, "base64")
    : Buffer.from(body.head + body.repeat.repeat(body.times) + body.tail);
}

function verify(one, changes) {
  const { headers, secret, allowUnbound } = one;
  return verifyWebhook({
    body: bytes(one.body),
    headers,
    secret,
    allowUnbound,
    now: new Date(one.now * 1000),
    ...changes,
  });
}

for (const one of cases) {
  test(`${one.name}: ${one.claim}`, async () => {
    if ("error" in one) {
      await assert.rejects(verify(one), { name: "InvalidSignature", message: one.error });
      return;
    }
    const { body, timestamp, ...read } = await verify(one);
    const { timestamp: expected, ...others } = one.accepted;
    assert.deepEqual(timestamp, expected && new Date(expected));
    assert.deepEqual({ ...read, data: others.data ?? read.data }, { ...others, data: others.data ?? read.data });
  });
}

test("a body may be text, an ArrayBuffer or any Uint8Array", async () => {
  const buffer = new TextEncoder().encode(sent.body).buffer;
  for (const body of [sent.body, buffer, new Uint8Array(buffer), Buffer.from(sent.body)]) {
    assert.equal((await verify(sent, { body })).id, sent.accepted.id);
  }
});

test("a parsed body is a mistake of the receiver, not of the sender", async () => {
  await assert.rejects(verify(sent, { body: JSON.parse(sent.body) }), TypeError);
});

test("headers may be those of fetch, a Map, pairs, or lists of one", async () => {
  const pairs = Object.entries(sent.headers);
  const lists = Object.fromEntries(pairs.map(([name, value]) => [name, [value]]));
  for (const headers of [new Headers(pairs), new Map(pairs), pairs, lists, { ...lists, other: undefined }]) {
    assert.equal((await verify(sent, { headers })).id, sent.accepted.id);
  }
});

test("a header that came twice is refused", async () => {
  const twice = [...Object.entries(sent.headers), ["Webhook-Id", sent.headers["webhook-id"]]];
  const listed = { ...sent.headers, "webhook-id": ["a", "b"] };
  for (const headers of [twice, listed]) {
    await assert.rejects(verify(sent, { headers }), { message: "webhook-id came more than once" });
  }
});

test("a secret that is not set opens nothing", async () => {
  for (const secret of [undefined, null, [], [sent.secret, ""]]) {
    await assert.rejects(verify(sent, { secret }), { message: "the secret is empty" });
  }
});

test("the tolerance can be chosen, and the clock is now by default", async () => {
  await assert.rejects(verify(sent, { tolerance: 1 }), /more than 1 seconds ago/);
  await assert.rejects(verify(sent, { now: undefined }), InvalidSignature);
  await assert.rejects(verify(sent, { now: new Date(NaN) }), TypeError);
});

test("a signature is one text only: another base64 of the same bytes is refused", async () => {
  const [version, last] = [sent.headers["webhook-signature"].slice(0, -2), sent.headers["webhook-signature"].at(-2)];
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const sibling = alphabet[alphabet.indexOf(last) + 1];
  const headers = { ...sent.headers, "webhook-signature": `${version}${sibling}=` };
  await assert.rejects(verify(sent, { headers }), /no signature matches/);
});

test("a request as node:http receives it is verified", async () => {
  const now = new Date(sent.now * 1000);
  const server = createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    const body = Buffer.concat(parts);
    const webhook = await verifyWebhook({ body, headers: request.headers, secret: sent.secret, now });
    response.end(JSON.stringify(webhook));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const signal = AbortSignal.timeout(5000);
    const url = `http://127.0.0.1:${server.address().port}/`;
    const answer = await fetch(url, { method: "POST", headers: sent.headers, body: sent.body, signal });
    const { body, ...read } = await answer.json();
    assert.deepEqual(read, sent.accepted);
    assert.deepEqual(body, JSON.parse(sent.body));
  } finally {
    server.close();
    server.closeAllConnections();
  }
});
