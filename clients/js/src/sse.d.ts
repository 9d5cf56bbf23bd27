/** What a stream dispatches at a blank line: the event's name, its data, and the cursor from then on. */
export interface Message {
  event: string;
  data: string;
  id: string;
}

/** Reads Server-Sent Events by the WHATWG rules, however the bytes were cut. One parser reads one connection. */
export class Parser {
  /** The cursor: an id counts from the blank line of its block on, with or without data in the block. */
  readonly lastId: string;
  /** Milliseconds that the server asked to wait before coming back. */
  readonly retry: number | undefined;
  /** The messages that are complete with these bytes. */
  feed(bytes: Uint8Array): Message[];
}
