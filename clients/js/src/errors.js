/** See index.d.ts. */
export class TramontaneError extends Error {
  name = "TramontaneError";
  constructor(code, message, more) {
    super(message);
    Object.assign(this, { code, ...more });
  }
}

/** Events that do not follow on what we have: asked for again once, then an error. */
export const gap = (message) => new TramontaneError("protocol_gap", message);

/** What comes right by itself: a connection, a busy server. `wait`: milliseconds that the server asks for. */
export class Lost {
  constructor(error, wait = 0) {
    this.error = error;
    this.wait = wait;
  }
}
