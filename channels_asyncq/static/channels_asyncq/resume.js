// A WebSocket that comes back and misses nothing: docs/browser-client.md

const FIRST = 500, LONGEST = 20000, STABLE = 5000; // ms
const FINAL = /^(1000|1008|4(?!01[23])[0-4]..)$/; // close codes

export class ResumableSocket extends EventTarget {
  #url; #silence; #timer; #retry; #heard;
  #socket; // null: waiting or closed
  #failures = 0;
  #first = true;
  #end = new AbortController();

  constructor(url, { since = "", silence = 30000 } = {}) {
    super();
    this.position = since;
    this.#url = url;
    this.#silence = silence;
    this.#connect();
    const on = (type, act) => addEventListener(type, act, this.#end);
    on("online", () => this.#wake());
    on("pageshow", () => this.#wake());
    on("visibilitychange", () => document.hidden || this.#wake());
    on("pagehide", () => {
      if (this.#socket) this.#lose(1001);
      clearTimeout(this.#timer);
    });
  }

  send(data) {
    if (this.#socket?.readyState !== 1) return false;
    this.#socket.send(data);
    return true;
  }

  close() { this.#lose(1000); }

  #after(ms, act = () => this.#connect()) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(act, ms);
  }

  #connect() {
    const url = new URL(this.#url, document.baseURI);
    url.protocol = url.protocol.replace("http", "ws");
    if (this.position) url.searchParams.set("since", this.position);
    const socket = (this.#socket = new WebSocket(url));
    socket.onopen = () => this.#after(STABLE, () => (this.#failures = 0));
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lose(code, reason);
    this.#heard = Date.now();
    this.#after(LONGEST, () => this.#lose(1006));
  }

  #receive(data) {
    this.#heard = Date.now();
    let frame;
    try { frame = JSON.parse(data); } catch {}
    const { id, m, type, ms, ...detail } = frame ?? {};
    if (type === "retry" && ms >= 0) this.#retry = ms;
    else if (type === "resumed" && id) {
      this.position = id;
      this.#failures = 0;
      detail.first = this.#first;
      this.#first = false;
      this.dispatchEvent(new CustomEvent("recovered", { detail }));
    } else {
      const lastEventId = m === undefined ? "" : id;
      if (lastEventId) [this.position, data] = [id, m];
      this.dispatchEvent(new MessageEvent("message", { data, lastEventId }));
    }
  }

  #lose(code, reason = "", delay = this.#retry) {
    if (this.#end.signal.aborted) return;
    const socket = this.#socket;
    if (socket) socket.onmessage = socket.onclose = socket.close();
    this.#socket = this.#retry = null;
    delay ??= Math.random() * Math.min(LONGEST, FIRST * 2 ** this.#failures++);
    this.#after(delay);
    if (FINAL.test(code)) {
      this.#end.abort();
      clearTimeout(this.#timer);
      delay = null;
    }
    this.dispatchEvent(new CustomEvent("close", { detail: { code, reason, delay } }));
  }

  #wake() {
    this.#failures = 0;
    if (!this.#socket) this.#after(0);
    else if (Date.now() - this.#heard > this.#silence) this.#lose(1006, "", 0);
  }
}
