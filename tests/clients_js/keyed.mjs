// Submits and streams with a key, and without one. Input: {url, key}. Output: what came of each.

import { Tramontane } from "../../clients/js/src/index.js";

let input = "";
for await (const block of process.stdin) input += block;
const { url, key } = JSON.parse(input);

const request = { messages: [{ role: "user", content: "Say: aye" }] };
const authorization = `Bearer ${key}`;
const results = {};

for (const [name, headers] of Object.entries({ value: { authorization }, function: async () => ({ authorization }) })) {
  const stream = new Tramontane(url, { headers }).stream(request);
  for await (const _ of stream);
  results[name] = [stream.text, stream.verified];
}
for (const [name, headers] of Object.entries({ none: {}, wrong: { authorization: "Bearer tm_x" } })) {
  const client = new Tramontane(url, { headers });
  results[name] = [
    await client.submit(request).catch(({ code }) => code),
    await client.stream(request).done.catch(({ code }) => code),
  ];
}
console.log(JSON.stringify(results));
