// The official TypeScript SDK against a server: `node chat.mjs URL < calls.json`, one result per call on stdout.
// A call is {stream, request, how, key, timeoutMs}; a result is {text, finishReason, usage, …} or {error, …}.

import { readFileSync } from "node:fs";
import { Mistral } from "@mistralai/mistralai";

// Node may collect a signal before its time has come, and a call that it should end then waits for ever: all are kept.
const kept = [];
for (const name of ["timeout", "any"]) {
  const make = AbortSignal[name].bind(AbortSignal);
  AbortSignal[name] = (...given) => kept[kept.push(make(...given)) - 1];
}

async function answer(client, { stream, request, how, timeoutMs = 5000 }) {
  const options = { headers: how ? { "x-simulator": how } : {}, timeoutMs };
  if (!stream) {
    const { choices, usage } = await client.chat.complete(request, options);
    const { message, finishReason } = choices[0];
    return { text: message.content, toolCalls: message.toolCalls, finishReason, usage };
  }
  const result = { text: "", parts: [], toolCalls: [], finishReason: null, usage: null };
  for await (const { data } of await client.chat.stream(request, options)) {
    const { delta, finishReason } = data.choices[0];
    if (typeof delta.content === "string") result.text += delta.content;
    else for (const part of delta.content ?? []) result.parts.push(part.type);
    result.toolCalls.push(...(delta.toolCalls ?? []));
    result.finishReason = finishReason ?? result.finishReason;
    result.usage = data.usage ?? result.usage;
  }
  return result;
}

async function attempt(serverURL, call) {
  try {
    return await answer(new Mistral({ apiKey: call.key ?? "k", serverURL }), call);
  } catch (error) {
    return { error: error.constructor.name, cause: error.cause?.constructor?.name, message: error.message, status: error.statusCode };
  }
}

const results = [];
for (const call of JSON.parse(readFileSync(0, "utf8"))) results.push(await attempt(process.argv[2], call));
const { data } = await new Mistral({ apiKey: "k", serverURL: process.argv[2] }).models.list();
console.log(JSON.stringify({ results, models: data.map((model) => model.id) }));
process.exit(0);
