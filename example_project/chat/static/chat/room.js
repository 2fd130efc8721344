"use strict";

const composer = document.getElementById("composer");
const element = (id) => document.getElementById(id);
const log = element("log");
const scroll = element("scroll");
const nameField = element("name");
const messageField = element("message");

// ---- The connection: one WebSocket at a time, tried again with growing, jittered delays ----

const FIRST_DELAY = 500;
const LONGEST_DELAY = 20000;
const SILENCE = 25000; // Rolls are called every ten seconds or so: a socket silent for this long is dead.
const CLOSE_BAD_ROOM = 4404;

let socket = null;
let failures = 0;
let retryAt = 0;
let retryTimer = 0;
let heardAt = 0;

function connect() {
  clearTimeout(retryTimer);
  retryTimer = 0;
  show("connecting", failures ? "Reconnecting…" : "Connecting…");
  const address = new URL(`/ws/chat/${composer.dataset.room}/`, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  address.search = new URLSearchParams({ name: localStorage.getItem("name") ?? "", after: missedSince() });
  const opened = new WebSocket(address);
  socket = opened;
  heardAt = Date.now();
  opened.onmessage = ({ data }) => {
    heardAt = Date.now();
    const frame = JSON.parse(data);
    handlers[frame.type]?.(frame);
  };
  opened.onclose = ({ code }) => {
    if (opened === socket) lost(code);
  };
}

function lost(code) {
  socket = null;
  setPresent([]);
  typists.clear();
  showTypists();
  if (code === CLOSE_BAD_ROOM) {
    show("stopped", "This room cannot be opened");
    return;
  }
  // Jitter, or every page of a restarted server comes back in the same instant.
  const delay = Math.min(LONGEST_DELAY, FIRST_DELAY * 2 ** failures) * (0.5 + Math.random() / 2);
  failures += 1;
  retryAt = Date.now() + delay;
  retryTimer = setTimeout(connect, delay);
  show("waiting", navigator.onLine ? "Connection lost" : "You are offline");
}

function send(frame) {
  if (socket?.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(frame));
  return true;
}

function show(state, words) {
  element("connection").dataset.state = state;
  if (element("state").textContent !== words) element("state").textContent = words;
  element("retry").hidden = state !== "waiting";
  element("send").disabled = state !== "live" && state !== "paused";
  tick();
}

function tick() {
  // The countdown is for the eye; a screen reader hears each change of state once.
  const seconds = Math.ceil((retryAt - Date.now()) / 1000);
  element("countdown").textContent = retryTimer && seconds > 0 ? `next try in ${seconds} s` : "";
  if (socket && Date.now() - heardAt > SILENCE) {
    const silent = socket;
    lost(0);
    silent.close();
  }
}

function retryNow() {
  if (!socket) connect();
}

setInterval(tick, 500);
element("retry").addEventListener("click", retryNow);
addEventListener("online", retryNow);
document.addEventListener("visibilitychange", () => document.hidden || !retryTimer || retryNow());

// A browser may keep a page that was left, to show it again on the way back, and its socket with it: the person would
// stay in the room, and come back as a second one.
addEventListener("pagehide", () => {
  const left = socket;
  socket = null; // so that its end is no reason to try again
  clearTimeout(retryTimer);
  retryTimer = 0;
  left?.close();
});
addEventListener("pageshow", ({ persisted }) => persisted && retryNow());

// ---- Frames from the server ----

const handlers = {
  welcome({ member, name }) {
    failures = 0;
    me = member;
    rename(name);
    show("live", "Live");
    clearError();
  },
  history({ messages, truncated }) {
    if (truncated) {
      // More was missed than is sent: begin afresh rather than show a list with a hole in it.
      log.replaceChildren();
      element("truncated").hidden = false;
    }
    const stay = isAtEnd();
    messages.forEach(add);
    element("empty").hidden = log.children.length > 0;
    if (stay) toEnd();
  },
  message(message) {
    const stay = isAtEnd() || message.author === nameField.value;
    if (message.id) add({ ...message, author: String(message.author) });
    else notice(message.text); // Published by another program: never stored, so without a number.
    element("empty").hidden = true;
    typists.delete(message.author);
    showTypists();
    if (stay) toEnd();
    else element("newest").hidden = false;
  },
  notice: ({ text }) => handlers.message({ text }),
  tally({ words, messages }) {
    element("tally").textContent = messages ? `${words} ${words === 1 ? "word" : "words"}` : "";
  },
  typing({ name }) {
    typists.set(name, Date.now() + 3000);
    showTypists();
  },
  roll_call: rollCall,
  here({ member, name }) {
    answers?.set(member, String(name));
    setPresent([...present, [member, String(name)]]);
  },
  left({ member }) {
    answers?.delete(member);
    setPresent([...present].filter(([other]) => other !== member));
  },
  layer({ up }) {
    if (!up) return show("paused", "Live updates interrupted");
    show("live", "Live");
    clearError();
    send({ after: missedSince() });
    send({ who: true });
  },
  error({ text }) {
    element("error").textContent = text;
  },
};

// ---- Messages ----

let highest = 0;

function missedSince() {
  // Two servers may announce their messages in another order than they stored them, so ask for a few that
  // are here already: add() drops what it knows.
  return Math.max(0, highest - 20);
}

function add({ id, author, text, sent_at }) {
  if (element(`message-${id}`)) return;
  highest = Math.max(highest, id);
  const sent = new Date(sent_at);
  const item = make("li", "message");
  item.id = `message-${id}`;
  item.dataset.number = id;
  item.dataset.author = author;
  item.dataset.day = sent.toDateString();
  item.dataset.sent = sent.getTime();
  item.classList.toggle("own", author === nameField.value);
  const meta = make("div", "meta");
  const time = make("time", "", sent.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));
  time.dateTime = sent_at;
  time.title = sent.toLocaleString();
  meta.append(make("span", "author", author), time);
  const body = make("div", "text", text);
  body.dir = "auto";
  item.append(meta, face(author), body);

  let before = log.lastElementChild;
  while (before && !(Number(before.dataset.number) < id)) before = before.previousElementSibling;
  if (before) before.after(item);
  else log.prepend(item);
  if (before?.dataset.day !== item.dataset.day) item.before(dayLine(sent, before?.dataset.number ?? 0));
  else if (before.dataset.author === author && item.dataset.sent - before.dataset.sent < 300000) {
    item.classList.add("more");
  }
}

function notice(text) {
  if (typeof text !== "string") return;
  const item = make("li", "notice", text);
  item.dataset.number = highest;
  log.append(item);
}

function dayLine(date, number) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 86400000);
  const words = days === 0 ? "Today" : days === 1 ? "Yesterday"
    : date.toLocaleDateString([], { weekday: "long", day: "numeric", month: "long", year: "numeric" });
  const line = make("li", "day", words);
  line.dataset.number = number;
  line.dataset.day = date.toDateString();
  return line;
}

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text; // Never innerHTML: what people write stays text.
  return made;
}

function face(name) {
  const initials = name.split(" ").map((word) => [...word][0]).slice(0, 2).join("").toUpperCase();
  const made = make("span", "face", initials);
  made.ariaHidden = "true";
  let hue = 0;
  for (const letter of name) hue = (hue * 31 + letter.codePointAt(0)) % 360;
  made.style.setProperty("--hue", hue);
  return made;
}

const isAtEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
  element("newest").hidden = true;
}

element("newest").addEventListener("click", toEnd);
scroll.addEventListener("scroll", () => isAtEnd() && toEnd());
new ResizeObserver(() => element("newest").hidden && toEnd()).observe(scroll);

// ---- Who is here: a roll call empties the list, the answers fill it ----

const TIME_TO_ANSWER = 1500;
let me = "";
let present = new Map();
let answers = null;
let rollTimer = 0;

function rollCall() {
  // Keep the old list on the page until everybody has had time to answer; then only the answers count.
  if (!answers) {
    setTimeout(() => {
      const answered = answers ?? [];
      answers = null;
      setPresent(answered);
    }, TIME_TO_ANSWER);
  }
  answers = new Map();
  // Whoever comes first asks for all of us: the others see the call and wait again.
  clearTimeout(rollTimer);
  rollTimer = setTimeout(() => send({ who: true }), 5000 + Math.random() * 5000);
}

function setPresent(people) {
  present = new Map(people);
  const sorted = [...present].sort(([a, one], [b, other]) => (b === me) - (a === me) || one.localeCompare(other));
  element("here").replaceChildren(...sorted.map(([member, name]) => {
    const item = make("li", member === me ? "self" : "");
    item.append(face(name), make("span", "who", name));
    if (member === me) item.append(make("span", "you", "(you)"));
    return item;
  }));
  element("here-count").textContent = present.size || "";
}

// ---- Typing ----

const typists = new Map();
let typedAt = 0;

function showTypists() {
  for (const [name, until] of typists) if (until < Date.now()) typists.delete(name);
  const names = [...typists.keys()];
  element("typing").textContent = names.length === 0 ? ""
    : names.length === 1 ? `${names[0]} is typing…`
    : names.length === 2 ? `${names[0]} and ${names[1]} are typing…` : "Several people are typing…";
}

setInterval(showTypists, 1000);

messageField.addEventListener("input", () => {
  fit();
  if (messageField.value && Date.now() - typedAt > 2000) {
    typedAt = Date.now();
    send({ typing: true });
  }
});

// ---- Sending ----

function fit() {
  messageField.style.height = "auto";
  messageField.style.height = `${messageField.scrollHeight + 2}px`;
}

function sent() {
  messageField.value = "";
  typedAt = 0;
  fit();
  clearError();
  messageField.focus();
}

function clearError() {
  element("error").textContent = "";
}

composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = messageField.value.trim();
  if (!text) return;
  if (event.submitter?.value !== "view") {
    if (send({ message: text })) sent();
    return;
  }
  // The same message by an ordinary POST to a synchronous Django view, CSRF token and all.
  try {
    const response = await fetch(composer.action, { method: "POST", body: new FormData(composer) });
    if (response.ok) return sent();
    const { error } = await response.json().catch(() => ({}));
    element("error").textContent = error ?? `The server answered ${response.status}.`;
  } catch {
    element("error").textContent = "The server cannot be reached.";
  }
});

messageField.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!element("send").disabled) composer.requestSubmit(element("send"));
});

function rename(name) {
  nameField.value = name;
  localStorage.setItem("name", name);
  for (const item of log.querySelectorAll(".message")) {
    item.classList.toggle("own", item.dataset.author === name);
  }
}

nameField.addEventListener("change", () => {
  const name = nameField.value.trim();
  if (!name) nameField.value = localStorage.getItem("name") ?? "";
  else if (send({ name })) rename(name);
});
nameField.addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  messageField.focus();
});

nameField.value = localStorage.getItem("name") ?? "";
connect();
