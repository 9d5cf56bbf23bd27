// One call of the server, and the pause before the next try.

import { Lost, TramontaneError } from "./errors.js";

const LONGEST_PAUSE = 15e3;
const LONGEST_TIMER = 2 ** 31 - 1;

/** One try. Throws Lost, or the TramontaneError of a refusal that no repeating will change. */
export async function call({ at, fetch, headers }, path, init) {
  let response;
  try {
    const all = new Headers(typeof headers == "function" ? await headers() : headers);
    for (const name in init.headers) all.set(name, init.headers[name]);
    response = await fetch(at(path), { cache: "no-store", ...init, headers: all });
  } catch (error) {
    throw new Lost(error);
  }
  const { ok, status } = response;
  if (ok) return response;
  const problem = (await response.json().catch(() => 0)) || {};
  const { code = "http_error", detail = `HTTP ${status}` } = problem;
  const error = new TramontaneError(code, detail, { status, problem });
  if (status >= 400 && status < 500 && status != 408 && status != 429) throw error;
  const after = response.headers.get("retry-after");
  throw new Lost(error, Math.max(0, after * 1e3 || Date.parse(after) - Date.now() || 0));
}

/** Sleep before the next try: what the server asked for, and then any time up to `ceiling`; `tell` hears it first. */
export async function pause({ error, wait }, ceiling, signal, tell) {
  const delay = Math.min(wait + Math.random() * Math.min(ceiling, LONGEST_PAUSE), LONGEST_TIMER);
  const over = new AbortController();
  let timer;
  await new Promise((resolve) => {
    // A controller has what an option of listeners needs: a signal, which removes them.
    signal?.addEventListener("abort", resolve, over);
    if (!wait) globalThis.addEventListener?.("online", resolve, over);
    tell?.(delay, error);
    timer = setTimeout(resolve, delay);
  });
  clearTimeout(timer);
  over.abort();
  signal?.throwIfAborted();
}
