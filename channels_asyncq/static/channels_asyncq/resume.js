// A WebSocket that comes back, missing nothing: docs/browser-client.md

const FIRST = 500, LONGEST = 20000; // ms
const FINAL = /^(1000|1008|4(?!01[23])[0-4]..)$/; // codes

export class ResumableSocket extends EventTarget {
  #url; #silence; #timer; #retry; #heard;
  #socket;
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
    const wake = () => document.hidden || this.#wake();
    for (const type of ["online", "pageshow", "visibilitychange"]) on(type, wake);
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
    socket.onopen = () => clearTimeout(this.#timer);
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
    const placed = /^1~/.test(id); // ~~: former channels
    if (type === "retry" && ms >= 0) return (this.#retry = ms);
    if (placed) this.position = type ? id : id + this.position.replace(/.*?(?=~~|$)/, "");
    if (placed && type === "resumed") {
      this.#failures = 0;
      this.#tell("recovered", { ...detail, first: this.#first });
      this.#first = false;
    } else if (!placed || m !== undefined)
      this.dispatchEvent(new MessageEvent("message", { data: m ?? data, lastEventId: placed ? id : "" }));
  }

  #tell(type, detail) { this.dispatchEvent(new CustomEvent(type, { detail })); }

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
    this.#tell("close", { code, reason, delay });
  }

  #wake() {
    this.#failures = 0;
    if (!this.#socket) this.#after(0);
    else if (Date.now() - this.#heard > this.#silence) this.#lose(1006, "", 0);
  }
}
