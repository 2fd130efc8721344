// A WebSocket that resumes: docs/browser-client.md

const FINAL = /^(100[089]|4(?!01[23])[0-4]..)$/;

export class ResumableSocket extends EventTarget {
  #url; #timer; #retry; #heard;
  #socket; // null: waiting, closed
  #channel = "";
  #failed = 0;
  #first = true;
  #end = new AbortController();

  constructor(url, { since = "", silence = 30000 } = {}) {
    super();
    this.position = since;
    this.#url = url;
    this.#connect();
    const wake = () => {
      this.#failed = 0;
      if (!this.#socket) this.#after(0);
      else if (Date.now() - this.#heard > silence) this.#lose(1006, "", 0);
    };
    const on = (type, act) => addEventListener(type, act, this.#end);
    on("online", wake);
    on("pageshow", wake);
    on("visibilitychange", () => document.hidden || wake());
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
    const socket = this.#socket = new WebSocket(url);
    socket.onopen = () => clearTimeout(this.#timer);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lose(code, reason);
    this.#heard = Date.now();
    this.#after(20000, () => this.#lose(1006));
  }

  #receive(data) {
    this.#heard = Date.now();
    let frame;
    try { frame = JSON.parse(data); } catch {}
    const { id, m, type, ms, ...detail } = frame ?? {};
    if (type === "retry" && ms >= 0) this.#retry = ms;
    else if (type === "resumed" && id) {
      this.position = id;
      this.#channel = id.slice((id + "~~").indexOf("~~"));
      this.#failed = 0;
      detail.first = this.#first;
      this.#first = false;
      this.dispatchEvent(new CustomEvent("recovered", { detail }));
    } else {
      const isOurs = /^(id|id,m|m)$/.test(Object.keys(frame ?? {}));
      if (isOurs && id) this.position = id + this.#channel;
      const init = isOurs ? { data: m, lastEventId: this.position } : { data };
      if (init.data !== undefined) this.dispatchEvent(new MessageEvent("message", init));
    }
  }

  #lose(code, reason = "", delay = this.#retry) {
    if (this.#end.signal.aborted) return;
    const socket = this.#socket;
    if (socket) socket.onmessage = socket.onclose = socket.close();
    this.#socket = this.#retry = null;
    delay ??= Math.random() * Math.min(20000, 500 * 2 ** this.#failed++); // full jitter
    this.#after(delay);
    if (FINAL.test(code)) {
      this.#end.abort();
      clearTimeout(this.#timer);
      delay = null;
    }
    this.dispatchEvent(new CustomEvent("close", { detail: { code, reason, delay } }));
  }
}
