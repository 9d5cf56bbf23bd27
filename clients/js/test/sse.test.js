// The cases that all our parsers are held to: whole, byte by byte, and cut anywhere.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Parser } from "tramontane/sse";

const cases = JSON.parse(readFileSync(new URL("../../../tests/vectors/sse.json", import.meta.url), "utf8"));

/** In the file one character is one byte. */
const bytes = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));

function read(blocks) {
  const parser = new Parser();
  return blocks.flatMap((block) => parser.feed(block)).map(({ event, data, id }) => [event, data, id]);
}

function cutAt(input, places) {
  return [0, ...places].map((place, index) => input.subarray(place, places[index] ?? input.length));
}

/** Numbers from 0 to 1, the same in every run (mulberry32). */
function chance(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

for (const { name, claim, input, expected } of cases) {
  test(`${name}: ${claim}`, () => {
    const whole = bytes(input);
    assert.deepEqual(read([whole]), expected, "whole");
    assert.deepEqual(read(cutAt(whole, [...whole.keys()])), expected, "byte by byte");
    const next = chance(1);
    for (let round = 0; round < 200; round++) {
      const places = Array.from({ length: 1 + Math.floor(next() * 4) }, () => Math.floor(next() * whole.length));
      places.sort((first, second) => first - second);
      assert.deepEqual(read(cutAt(whole, places)), expected, `cut at ${places}`);
    }
  });
}

test("the cursor moves at the blank line and not before", () => {
  const parser = new Parser();
  parser.feed(bytes("data: 1\nid: 1\n\ndata: 2\nid: 2\n"));
  assert.equal(parser.lastId, "1");
  parser.feed(bytes("\n"));
  assert.equal(parser.lastId, "2");
});

test("a lone CR ends a block at once, without a further byte", () => {
  assert.deepEqual(new Parser().feed(bytes("data:a\r\r")), [{ event: "message", data: "a", id: "" }]);
});

test("retry is a whole number of milliseconds, and keeps its last good value", () => {
  const parser = new Parser();
  assert.equal(parser.retry, undefined);
  parser.feed(bytes("retry: 500\nretry: soon\nretry: 1.5\nretry:\n\n"));
  assert.equal(parser.retry, 500);
});
