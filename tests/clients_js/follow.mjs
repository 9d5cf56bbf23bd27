// Streams jobs through a server that cuts connections, and says what came of each. Input: {url, jobs, replays, max}.

import { Tramontane } from "../../clients/js/src/index.js";

let input = "";
for await (const block of process.stdin) input += block;
const { url, jobs, replays, messages } = JSON.parse(input);

// The pauses are jittered by this; short ones make a thousand cuts a matter of seconds.
Math.random = () => 0.01;

const client = new Tramontane(url);
const results = [];
let reconnects = 0;

async function follow(requestOrJob) {
  const stream = client.stream(requestOrJob, { onReconnect: () => reconnects++ });
  const covered = [];
  for await (const { from, seq } of stream) covered.push([from ?? seq, seq]);
  results.push({
    jobId: stream.jobId,
    text: stream.text,
    verified: stream.verified,
    gaps: stream.gaps,
    dense: covered.every(([from], index) => from == (covered[index - 1]?.[1] ?? 0) + 1),
  });
  return stream;
}

const made = await Promise.all(Array.from({ length: jobs }, () => follow({ messages })));
await Promise.all(made.flatMap(({ jobId }) => Array.from({ length: replays }, () => follow(jobId))));
console.log(JSON.stringify({ results, reconnects }));
