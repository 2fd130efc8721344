/** Options of a ResumableSocket. */
export interface ResumableSocketOptions {
  /** The position that the view rendered with its data. Without one, the first connection replays nothing. */
  since?: string;
  /**
   * Milliseconds, 30000 by default. If no frame came for longer, the connection counts as dead when the page wakes.
   *
   * A page wakes at `online`, at `pageshow`, and when it becomes visible.
   */
  silence?: number;
}

/**
 * Detail of the event `recovered`, which follows each connection, after the messages that were missed.
 *
 * It comes again within a connection, with `recovered` false, if the server lost messages on the way.
 */
export interface Recovered {
  /** False: something may be missing. Load the data again. */
  recovered: boolean;
  /** Why not recovered, for logs; "" if it was. */
  reason: string;
  /** Whether this is the first one of this object. */
  first: boolean;
}

/** Detail of the event `close`, which follows each connection that was lost and each attempt that failed. */
export interface Closed {
  /** The close code: 1006 if the connection broke, was silent or was not made, 1001 if the page was left. */
  code: number;
  reason: string;
  /** Milliseconds until the next attempt; null: there is none. */
  delay: number | null;
}

export interface ResumableSocketEvents {
  /**
   * A message of a group: `data` is the message, `lastEventId` the position behind it.
   *
   * Or a frame that the consumer sent by itself: `data` is the frame as a WebSocket gives it, `lastEventId` is "".
   */
  message: MessageEvent;
  recovered: CustomEvent<Recovered>;
  close: CustomEvent<Closed>;
}

/**
 * A WebSocket that connects again by itself, from the position where it was.
 *
 * | state      | leaves when                                                                              |
 * |------------|------------------------------------------------------------------------------------------|
 * | connecting | the server accepts: open; it does not, or 20 s pass: waiting                             |
 * | open       | the connection ends, or was silent at a wake: waiting; with a final close code: closed   |
 * | waiting    | the delay passes, or the page wakes: connecting. Nothing ends it while the page is left  |
 * | closed     | never                                                                                    |
 *
 * close() leads to closed from every state.
 */
export class ResumableSocket extends EventTarget {
  /**
   * Connect at once.
   *
   * @param url Of ws:, wss:, http: or https:, or relative to the page.
   * @throws SyntaxError or TypeError if the url is none; SecurityError for ws: in a page of https:.
   */
  constructor(url: string | URL, options?: ResumableSocketOptions);

  /** Where the next connection resumes: "" at first, unless given. It changes before the event that it belongs to. */
  position: string;

  /**
   * Send a frame, or return false if there is no open connection.
   *
   * True means that the browser took it. The server may still miss it, if the connection breaks.
   */
  send(data: string | ArrayBufferLike | Blob | ArrayBufferView): boolean;

  /** Close for good; a `close` event with code 1000 follows at once. A second call does nothing. */
  close(): void;

  addEventListener<Type extends keyof ResumableSocketEvents>(
    type: Type,
    listener: (this: ResumableSocket, event: ResumableSocketEvents[Type]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;

  removeEventListener<Type extends keyof ResumableSocketEvents>(
    type: Type,
    listener: (this: ResumableSocket, event: ResumableSocketEvents[Type]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | EventListenerOptions,
  ): void;
}
