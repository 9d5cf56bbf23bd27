/** A webhook that must not be trusted: answer 400, and do nothing else with it. */
export class InvalidSignature extends Error {}

export interface VerifiedWebhook {
  /** The same on every attempt and replay: what to recognise a repeat by. Empty if the sender gave none. */
  id: string;
  /** `chat.completed`; empty if the body names none. */
  event: string;
  /** When it happened, which is not when it was sent; null if the body does not say. */
  timestamp: Date | null;
  data: Record<string, any>;
  /** The whole body. */
  body: Record<string, any>;
  /** Which attempt this is, from 1. It and `deliveryId` are not signed: for logs, not for decisions. */
  attempt: number | null;
  deliveryId: string | null;
}

export interface VerifyOptions {
  /** What came, before anybody parsed it. Node's Buffer is a Uint8Array. */
  body: string | Uint8Array | ArrayBuffer;
  /** Those of `fetch`, of `node:http`, a plain object, or pairs. */
  headers: Record<string, string | string[] | undefined> | Iterable<readonly [string, string]>;
  /** One secret, or all that are valid during a rotation. */
  secret: string | readonly string[] | undefined;
  /** The receiver's clock. */
  now?: Date;
  /** Seconds by which `now` may differ from the sender's clock; 300. */
  tolerance?: number;
  /**
   * Also take a request that has `X-Webhook-Signature` alone. That signature binds no time: whoever once saw the request
   * can send it again for ever. With any `webhook-…` header there, it never counts.
   */
  allowUnbound?: boolean;
}

/**
 * What the webhook says, once it is certain that the owner of a secret said it, and said it just now.
 *
 * Rejects with InvalidSignature whatever else came, and with TypeError when `body` is an object that somebody parsed.
 */
export function verifyWebhook(options: VerifyOptions): Promise<VerifiedWebhook>;
