// Verifies Tramontane's webhooks, and those of any sender of Standard Webhooks with a symmetric secret.
// One file without imports: it needs WebCrypto alone, so it runs in Node, in workers and wherever else there is `fetch`.

const STANDARD = ["webhook-id", "webhook-timestamp", "webhook-signature"];
const READ = new Set([...STANDARD, "x-webhook-signature", "x-webhook-attempt", "x-webhook-delivery"]);
const PREFIX = "whsec_";
// Visible ASCII. No dot, which parts what is signed: with one, a body could be read as an id, a time and another body.
const ID = /^[!-\-/-~]{1,256}$/;
const SECONDS = /^[0-9]{1,12}$/;
const BASE64 = /^[A-Za-z0-9+/]*$/;
const ISO_TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/;
const NO_MATCH = "no signature matches: another secret, or the body was changed";

/** A webhook that must not be trusted: answer 400, and do nothing else with it. */
export class InvalidSignature extends Error {
  name = "InvalidSignature";
}

/** See verify.d.ts. */
export async function verifyWebhook({
  body,
  headers,
  secret,
  now = new Date(),
  tolerance = 300,
  allowUnbound = false,
}) {
  const bytes = bytesOf(body);
  const secrets = usable(secret);
  const found = readHeaders(headers);
  let id;
  if (STANDARD.some((name) => found.has(name))) {
    id = await checkStandard(bytes, found, secrets, now, tolerance);
  } else {
    await checkUnbound(bytes, found, secrets, allowUnbound);
  }
  return read(bytes, id, found);
}

/** @returns {Promise<string>} the id of a request that Standard Webhooks calls valid */
async function checkStandard(body, found, secrets, now, tolerance) {
  for (const name of STANDARD) {
    if (!found.get(name)) throw new InvalidSignature(`${name} is missing`);
  }
  const [id, seconds, signatures] = STANDARD.map((name) => found.get(name));
  if (!ID.test(id)) throw new InvalidSignature("webhook-id is not an id");
  if (!SECONDS.test(seconds)) throw new InvalidSignature("webhook-timestamp is not a whole number of seconds");
  const age = now.getTime() / 1000 - Number(seconds);
  if (Number.isNaN(age)) throw new TypeError("now is not a valid Date");
  if (age > tolerance) throw new InvalidSignature(`the webhook is too old: sent more than ${tolerance} seconds ago`);
  if (-age > tolerance) {
    throw new InvalidSignature(`the webhook is from the future: more than ${tolerance} seconds ahead`);
  }
  const content = joined(utf8(`${id}.${seconds}.`), body);
  const entries = signatures
    .split(" ")
    .filter((entry) => entry.startsWith("v1,"))
    .map((entry) => fromBase64(entry.slice(3)));
  for (const one of secrets) {
    for (const entry of entries) {
      if (entry && (await signed(keyOf(one), content, entry))) return id;
    }
  }
  throw new InvalidSignature(NO_MATCH);
}

/** The signature of the body alone, in hexadecimal; its key is the secret as displayed. */
async function checkUnbound(body, found, secrets, allowed) {
  const signature = found.get("x-webhook-signature");
  if (signature === undefined) {
    throw new InvalidSignature("the webhook is not signed: it has neither webhook-signature nor X-Webhook-Signature");
  }
  if (!allowed) {
    throw new InvalidSignature("X-Webhook-Signature alone is open to replay: webhook-signature is required");
  }
  if (/^[0-9a-f]{64}$/.test(signature)) {
    const raw = Uint8Array.from(signature.match(/../g), (pair) => parseInt(pair, 16));
    for (const one of secrets) if (await signed(utf8(one), body, raw)) return;
  }
  throw new InvalidSignature(NO_MATCH);
}

/** What a body says that is known to be genuine. */
function read(body, signedId, found) {
  let said;
  try {
    said = JSON.parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(body));
  } catch {
    said = null;
  }
  if (typeof said !== "object" || said === null || Array.isArray(said)) {
    throw new InvalidSignature("the body is not a JSON object");
  }
  const { type = "", event = type, data = {}, id = "" } = said;
  const ours = typeof event === "string" && typeof id === "string" && typeof data === "object";
  if (!ours || data === null || Array.isArray(data)) throw new InvalidSignature("the body is not that of a webhook");
  const attempt = found.get("x-webhook-attempt") ?? "";
  const deliveryId = found.get("x-webhook-delivery") ?? "";
  return {
    id: signedId ?? id,
    event,
    timestamp: timeOf(said.timestamp ?? null),
    data,
    body: said,
    attempt: SECONDS.test(attempt) ? Number(attempt) : null,
    deliveryId: ID.test(deliveryId) ? deliveryId : null,
  };
}

function timeOf(text) {
  if (text === null) return null;
  const time = new Date(typeof text === "string" && ISO_TIME.test(text) ? text : NaN);
  if (Number.isNaN(time.getTime())) throw new InvalidSignature("the body is not that of a webhook");
  return time;
}

/** The headers that we read, names in lower case. */
function readHeaders(headers) {
  const found = new Map();
  const pairs = Symbol.iterator in headers ? headers : Object.entries(headers);
  for (const [name, value] of pairs) {
    const known = name.toLowerCase();
    if (!READ.has(known) || value === undefined) continue;
    const values = [value].flat();
    if (found.has(known) || values.length !== 1) throw new InvalidSignature(`${known} came more than once`);
    found.set(known, values[0]);
  }
  return found;
}

function usable(secret) {
  const secrets = [secret ?? ""].flat();
  // Anybody can sign with an empty key: a variable that is not set must not open the door.
  if (!secrets.length || !secrets.every((one) => keyOf(one).length)) throw new InvalidSignature("the secret is empty");
  return secrets;
}

/** The key of `webhook-signature`: what `whsec_…` stands for, or the text itself. */
function keyOf(secret) {
  if (!secret.startsWith(PREFIX)) return utf8(secret);
  const text = secret.slice(PREFIX.length).replace(/={1,2}$/, "");
  if (!BASE64.test(text) || text.length % 4 === 1) throw new InvalidSignature("the secret is not base64 after whsec_");
  return bytesOfBase64(text);
}

/** The bytes of a signature, undefined for what no encoder writes. */
function fromBase64(text) {
  return /^[A-Za-z0-9+/]{43}=$/.test(text) && btoa(atob(text)) === text ? bytesOfBase64(text) : undefined;
}

/** Whether `signature` is HMAC-SHA256 of `content`. WebCrypto compares in constant time. */
async function signed(raw, content, signature) {
  const key = await crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["verify"]);
  return crypto.subtle.verify("HMAC", key, signature, content);
}

function bytesOf(body) {
  if (typeof body === "string") return utf8(body);
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  if (body instanceof Uint8Array) return body;
  throw new TypeError("body must be what came, as text or bytes, and not what a parser has made of it");
}

function bytesOfBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

function utf8(text) {
  return new TextEncoder().encode(text);
}

function joined(first, second) {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
