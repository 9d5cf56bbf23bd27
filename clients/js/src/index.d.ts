/** Why a call or a stream did not end well. */
export class TramontaneError extends Error {
  /**
   * The server's code (`not_found`, `stream_expired`, `interrupted`, `cancelled`, …), or one of ours: `protocol_gap`
   * (events or text are missing, and a clean fetch did not bring them), `checksum_mismatch` (the text is not the one that
   * the server has), `wrong_type` (the answer is no event stream), `wrong_job`, `http_error` (no problem document).
   */
  code: string;
  /** HTTP status, for a call that was refused. */
  status?: number;
  /** The server's problem document. That of `stream_expired` has a `statusUrl`: the job's result is still there. */
  problem?: Record<string, any>;
  /** For a job that failed: whether asking again may help. */
  retryable?: boolean;
  /** For a job that failed: its final event. */
  event?: ErrorEvent;
}

export interface ClientOptions {
  /** Sent with every request. A function is asked anew for each, reconnects included: the place to refresh a token. */
  headers?: HeadersInit | (() => HeadersInit | Promise<HeadersInit>);
  fetch?: typeof fetch;
}

/** A chat request with our fields beside it, or `{kind: "chat", request, …}`. Nothing of it is changed. */
export interface ChatRequest {
  messages?: Array<Record<string, any>>;
  model?: string;
  kind?: string;
  request?: Record<string, any>;
  requestId?: string;
  /** Makes a submit repeatable over several runs of your program. Without one, each call makes its own. */
  idempotencyKey?: string;
  [field: string]: any;
}

/** A job as the server describes it; addresses are absolute. */
export interface Job {
  id: string;
  jobId: string;
  status: "queued" | "running" | "completed" | "failed" | "cancelled";
  requestId: string;
  statusUrl: string;
  eventsUrl: string;
  cancelUrl: string;
  [field: string]: any;
}

interface LogEvent {
  jobId: string;
  /** Its place in the job's log. Dense: the next event has `from` or `seq` one higher. */
  seq: number;
  /** The first place that it covers, where it stands for several. */
  from?: number;
  attempt: number;
}

export interface StartEvent extends LogEvent {
  type: "chat:start";
  status: "started";
  requestId: string;
  model: string;
  timestamp: string;
  eventsUrl: string;
  heartbeatMs: number;
}

export interface ChunkEvent extends LogEvent {
  type: "chat:chunk";
  content: string;
  /** Length of the text before it, in UTF-16 units, as `length` counts. */
  off: number;
  tokenCount: number;
  thinking?: string;
}

export interface ToolEvent extends LogEvent {
  type: "chat:tool";
  toolCalls: any[];
}

/** Another attempt goes on: the text has been cut to `keep`. */
export interface AttemptEvent extends LogEvent {
  type: "chat:attempt";
  mode: "continue" | "replay" | "restart";
  keep: number;
  reason: string;
}

export interface CompleteEvent extends LogEvent {
  type: "chat:complete";
  finishReason: string;
  len: number;
  sha256: string;
  totalTokens: number;
  attempts: number;
  usage: Record<string, any> | null;
}

export interface ErrorEvent extends LogEvent {
  type: "chat:error";
  error: string;
  code: string;
  retryable: boolean;
  partial: boolean;
  len: number;
}

export type ChatEvent = StartEvent | ChunkEvent | ToolEvent | AttemptEvent | CompleteEvent | ErrorEvent;

export interface StreamOptions {
  /** Ends the reading, not the job: that is what `cancel` is for. */
  signal?: AbortSignal;
  /** For a job: begin after this event. `"now"`: only what comes. Then `text` is what came since, and is not verified. */
  after?: number | "now";
  /** Keep the place under this name, so that `resume` finds it after a reload. */
  storageKey?: string;
  /** Where it is kept; `sessionStorage`. */
  storage?: Storage;
  /** Share one connection with other tabs that follow the job, where the browser can (Web Locks); true. */
  tabs?: boolean;
  /** How to hash (hexadecimal, lower case) where there is no WebCrypto. False: only the length is checked. */
  sha256?: ((bytes: Uint8Array) => string | Promise<string>) | false;

  /** A connection is there; `after` is the last event that we had. */
  onConnect?(how: { after: number | undefined; tries: number }, stream: ChatStream): void;
  /** A connection is lost, and comes again in `delay` milliseconds. `tries`: in a row without an event. */
  onReconnect?(how: { after: number | undefined; tries: number; delay: number; error: unknown }, stream: ChatStream): void;

  // Without an iterator these are called, and then the stream runs by itself.
  onStart?(event: StartEvent, stream: ChatStream): void;
  /** In a browser once per animation frame, for all that came. */
  onChunk?(event: ChunkEvent, stream: ChatStream): void;
  onTool?(event: ToolEvent, stream: ChatStream): void;
  onAttempt?(event: AttemptEvent, stream: ChatStream): void;
  onComplete?(event: CompleteEvent, stream: ChatStream): void;
  /** The job failed, or the stream did. Not called for an abort. */
  onError?(error: TramontaneError, stream: ChatStream): void;
}

/**
 * A job's events, each once and in order, over as many connections as it takes: `for await (const event of stream)`, or
 * callbacks. It is read once. Iterating pulls: who takes no event reads nothing from the network.
 */
export interface ChatStream extends AsyncIterable<ChatEvent> {
  /** The text so far, as it is to be shown. */
  readonly text: string;
  /** The last event that was taken. */
  readonly cursor: number | undefined;
  readonly jobId: string | undefined;
  /** Where the job's events are; undefined until the server has taken the job. */
  readonly url: string | undefined;
  /** The event that ended it. */
  readonly final: CompleteEvent | ErrorEvent | undefined;
  /** True once length and SHA-256 of the text have been found to be the server's. */
  readonly verified: boolean;
  /** How often events were missing and fetched again. */
  readonly gaps: number;
  /** Reads to the end. Rejects when the job failed; undefined when there was nothing left to read. */
  readonly done: Promise<CompleteEvent | undefined>;
}

export class Tramontane {
  /** `baseUrl`: where the server is; in a browser by default where the page came from. */
  constructor(baseUrl?: string, options?: ClientOptions);

  /** Have a job done. It is asked for until the server answers, under one key, so it is one job. */
  submit(request: ChatRequest, options?: { signal?: AbortSignal }): Promise<Job>;

  /** Have a job done and read it; or read one: a job, its id, or the address of its events (a ticket's too). */
  stream(requestOrJob: ChatRequest | Job | { eventsUrl: string } | string, options?: StreamOptions): ChatStream;

  /** The stream that this tab left under that key, from where it was; undefined if there is none. */
  resume(storageKey: string, options?: StreamOptions): ChatStream | undefined;

  /** A job with its result; with `wait` when it has ended, or after so many seconds. */
  get(job: Job | string, options?: { wait?: number; signal?: AbortSignal }): Promise<Job>;

  /** Stop a job, whatever it is doing. */
  cancel(job: Job | { jobId?: string } | string, options?: { signal?: AbortSignal }): Promise<Job>;

  /** An address to read one job's events without headers, by `EventSource` for one, until it expires. */
  ticket(
    job: Job | string,
    options?: { ttl?: string | number; signal?: AbortSignal },
  ): Promise<{ ticket: string; url: string; expiresAt: string }>;
}
