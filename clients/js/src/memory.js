// What a page must know to go on after a reload: the job, the cursor, and the text up to it.

/** The source of a stream that was left in this tab under that key, undefined if there is none. */
export function recall(storage, key) {
  try {
    return JSON.parse(storage.getItem(key)) ?? undefined;
  } catch {
    return undefined;
  }
}

/**
 * Pass the events of `told` on, and keep the stream's place until it has ended.
 *
 * It is written when the job is asked for, when its name is known, and when the page goes: a cursor and its text are
 * one, so an older place is as good as the newest, and costs a longer replay.
 */
export async function* remembered(storage, key, stream, told, signal) {
  const save = () => keep(storage, key, stream);
  save();
  const over = new AbortController();
  globalThis.addEventListener?.("pagehide", save, over);
  globalThis.addEventListener?.("visibilitychange", save, over);
  try {
    let named = !!stream.url;
    for await (const event of told) {
      yield event;
      if (!named) save();
      named = !!stream.url;
    }
  } catch (error) {
    // What no try will change is not tried again by the next page either.
    if (error?.code && !signal?.aborted) storage.removeItem(key);
    throw error;
  } finally {
    over.abort();
    if (stream.final) storage.removeItem(key);
    else if (signal?.aborted) save();
  }
}

function keep(storage, key, { url, jobId, cursor, begin, text, heartbeat, body, key: idempotencyKey }) {
  const place = url ? { url, jobId, heartbeat } : { body, key: idempotencyKey };
  const known = begin === 0 ? { cursor, text } : { cursor };
  // No room for so long a text: the server has it. No room at all: a reload will not resume, and nothing else is lost.
  if (!written(storage, key, { ...place, ...known })) written(storage, key, place);
}

function written(storage, key, place) {
  try {
    storage.setItem(key, JSON.stringify(place));
    return true;
  } catch {
    return false;
  }
}
