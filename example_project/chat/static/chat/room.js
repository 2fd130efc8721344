import { ResumableSocket } from "../channels_asyncq/resume.js";

const composer = document.getElementById("composer");
const element = (id) => document.getElementById(id);
const log = element("log");
const scroll = element("scroll");
const nameField = element("name");
const messageField = element("message");

// ---- The connection: a ResumableSocket connects again by itself and gets what the page has missed ----

const SILENCE = 25000; // A roll is called about every ten seconds: a socket that is silent for this long is dead.

const address = new URL(`/ws/chat/${composer.dataset.room}/`, location.href);
address.searchParams.set("name", localStorage.getItem("name") ?? "");
address.searchParams.set("page", newKey()); // The server recognises this page by it after a reconnect.

let socket = null;
let state = "connecting";
let askAt = 0;
let retryAt = 0;
let heardAt = 0;

function connect() {
  const left = socket;
  socket = null; // so that its end counts for nothing
  left?.close();
  show("connecting", left ? "Reconnecting…" : "Connecting…");
  // Each attempt reads the address anew, so it has the name of that moment.
  const opened = new ResumableSocket(address, { since: left?.position ?? composer.dataset.since });
  const on = (type, act) => opened.addEventListener(type, (event) => {
    if (opened !== socket) return;
    heardAt = Date.now();
    act(event);
  });
  socket = opened;
  heardAt = Date.now();
  on("message", ({ data }) => {
    // A message of the room's group, or a frame that the consumer sent by itself.
    const frame = typeof data === "string" ? JSON.parse(data) : data;
    handlers[frame.type]?.(frame);
  });
  on("recovered", recovered);
  on("close", lost);
}

function recovered({ detail }) {
  retryAt = 0;
  show("live", "Live");
  clearError();
  outbox.forEach(transmit);
  if (detail.recovered && !mustLoad) return;
  if (!detail.recovered) element("recovery").textContent = LOADING;
  mustLoad = true;
  // After a restart of the message server all pages come here at once: they ask at different times.
  setTimeout(() => send({ after: complete }), Math.random() * 1000);
}

function lost({ detail: { delay } }) {
  element("server").textContent = "";
  if (delay === null) {
    show("stopped", "This room cannot be opened");
    return;
  }
  retryAt = Date.now() + delay;
  show("waiting", navigator.onLine ? "Connection lost" : "You are offline");
}

function send(frame) {
  return socket.send(JSON.stringify(frame));
}

const LOADING = "Some messages did not come through live. They are being loaded…";
const LOADED = "Some messages did not come through live, so they were loaded again. Nothing is missing now.";
const OUTAGES = {
  paused: "Live updates are interrupted. What you write is kept; the others see it a little later.",
  waiting: "There is no connection. What you write waits here and is sent when it is back.",
};

function show(next, words) {
  state = next;
  element("connection").dataset.state = state;
  if (element("state").textContent !== words) element("state").textContent = words;
  element("retry").hidden = state !== "waiting";
  element("send").disabled = element("send-view").disabled = state === "stopped";
  if (state !== "live") forgetTheRoll();
  // "Reconnecting…" appears with each attempt. The text about the outage stays.
  if (state !== "connecting") {
    element("outage").textContent = OUTAGES[state] ?? "";
    if (state !== "live" && present.size) element("as-of").textContent = `as of ${clock(knownAt)}`;
  }
  tick();
}

function tick() {
  // A screen reader does not read the countdown. It reads each change of state once.
  const seconds = Math.ceil((retryAt - Date.now()) / 1000);
  element("countdown").textContent = state === "waiting" && seconds > 0 ? `next try in ${seconds} s` : "";
  if (state === "waiting" && seconds <= 0) show("connecting", "Reconnecting…");
  showFates();
  if (state === "paused" && Date.now() > askAt) {
    // The servers cannot reach each other, but they share a database. So ask for new messages every few seconds.
    askAt = Date.now() + 2000 + Math.random() * 2000;
    send({ after: complete });
  }
  if (["live", "paused"].includes(state) && Date.now() - heardAt > SILENCE) connect();
}

setInterval(tick, 500);
element("retry").addEventListener("click", connect);

// ---- Frames from the server ----

const handlers = {
  welcome({ member, name, server }) {
    me = member;
    rename(name);
    element("server").textContent = server.port ? `server ${server.port}, pid ${server.pid}` : `pid ${server.pid}`;
  },
  history({ messages, truncated }) {
    if (truncated) {
      // More messages were missed than were sent: clear the list, so that it has no gap.
      log.replaceChildren();
      element("truncated").hidden = false;
    }
    const stay = isAtEnd();
    messages.forEach(add);
    if (messages.length) complete = messages.at(-1).id;
    if (element("recovery").textContent === LOADING) element("recovery").textContent = LOADED;
    mustLoad = false;
    element("empty").hidden = log.children.length > 0;
    if (stay) toEnd();
  },
  stored(message) {
    handlers["chat.message"](message);
    kept.set(message.id, Date.now());
  },
  "chat.message"(message) {
    kept.delete(message.id);
    const stay = isAtEnd() || message.author === nameField.value;
    if (message.id) add({ ...message, author: String(message.author) });
    else notice(message.text); // Published by another program, so it is not stored and has no id.
    element("empty").hidden = true;
    typists.delete(message.author);
    showTypists();
    if (stay) toEnd();
    else element("newest").hidden = false;
  },
  "chat.notice": ({ text }) => handlers["chat.message"]({ text }),
  "chat.tally"({ words, messages }) {
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
    send({ after: complete });
    // All pages get this at once, and one roll call is enough for all of them.
    clearTimeout(rollTimer);
    rollTimer = setTimeout(() => send({ who: true }), Math.random() * 500);
  },
  error({ text, key }) {
    element("error").textContent = text;
    takeBack(key);
  },
};

// ---- Messages ----

let highest = 0;
let complete = 0; // This page has every message up to this id: ids grow in the order of storing.
let mustLoad = !composer.dataset.since; // The view had no position: messages may have come since it looked.

function lookForMissing(recent) {
  const ids = Array.isArray(recent) ? recent.filter(Number.isSafeInteger) : [];
  if (!ids.length) return;
  const newest = Math.max(...ids);
  // The other pages got this call too, and ask for the messages that they lack.
  for (const id of kept.keys()) if (id <= newest) kept.delete(id);
  const known = Math.min(...ids) <= complete && ids.every((id) => element(`message-${id}`));
  if (known) complete = Math.max(complete, newest);
  else send({ after: complete });
}

function add({ id, author, text, sent_at, key }) {
  settle(key);
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
  const time = make("time", "", clock(sent));
  time.dateTime = sent_at;
  time.title = sent.toLocaleString();
  meta.append(make("span", "author", author), time);
  const body = make("div", "text", text);
  body.dir = "auto";
  item.append(meta, face(author), body, make("div", "fate"));

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

function clock(time) {
  return new Date(time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

function make(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text; // Never innerHTML: messages stay text.
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

// ---- Presence: a roll call asks, and the answers make the list ----

const TIME_TO_ANSWER = 1500;
let me = "";
let present = new Map();
const typists = new Map();
let answers = null;
let rollTimer = 0;
let settleTimer = 0;
let knownAt = Date.now();

function rollCall({ recent }) {
  lookForMissing(recent);
  // Show the old list until all pages have had time to answer. Then show only the answers.
  if (!answers) {
    settleTimer = setTimeout(() => {
      const answered = answers;
      answers = null;
      setPresent(answered);
      element("as-of").textContent = "";
    }, TIME_TO_ANSWER);
  }
  answers = new Map();
  // The first page to call the roll calls it for all: the others get the call and wait again.
  clearTimeout(rollTimer);
  rollTimer = setTimeout(() => send({ who: true }), 5000 + Math.random() * 5000);
}

function forgetTheRoll() {
  // In an outage no answers come, and a missing answer does not mean that a person has left.
  clearTimeout(settleTimer);
  answers = null;
  typists.clear();
  showTypists();
}

function setPresent(people) {
  knownAt = Date.now();
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
  if (messageField.value && state === "live" && Date.now() - typedAt > 2000) {
    typedAt = Date.now();
    send({ typing: true });
  }
});

// ---- Sending ----

function fit() {
  messageField.style.height = "auto";
  messageField.style.height = `${messageField.scrollHeight + 2}px`;
}

function clearError() {
  element("error").textContent = "";
}

// Messages that are not stored yet, by a key that this page chose. They are sent again until the server says that
// they are stored. The server recognises the key and stores each once. The tab keeps them over a reload.
const OUTBOX = `outbox:${composer.dataset.room}`;
const outbox = new Map(JSON.parse(sessionStorage.getItem(OUTBOX) ?? "[]"));
const kept = new Map(); // ids of messages that are stored and have not come back over the room, and since when

function newKey() {
  // Not randomUUID(): over plain HTTP it works on localhost only.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function saveOutbox() {
  sessionStorage.setItem(OUTBOX, JSON.stringify([...outbox]));
}

function put(text) {
  const key = newKey();
  outbox.set(key, text);
  saveOutbox();
  showWaiting(text, key);
  messageField.value = "";
  element("recovery").textContent = "";
  typedAt = 0;
  fit();
  clearError();
  toEnd();
  messageField.focus();
  return key;
}

function showWaiting(text, key) {
  const item = make("li", "message own waiting");
  item.id = `waiting-${key}`;
  const body = make("div", "text", text);
  body.dir = "auto";
  item.append(body, make("div", "fate"));
  element("outbox").append(item);
  element("empty").hidden = true;
}

function settle(key) {
  if (!outbox.delete(key)) return;
  saveOutbox();
  element(`waiting-${key}`).remove();
}

function takeBack(key) {
  // The message was refused: put its text back into the field, where it can be changed.
  const text = outbox.get(key);
  if (text === undefined) return;
  settle(key);
  messageField.value = [text, messageField.value].filter(Boolean).join("\n");
  fit();
}

function transmit(text, key) {
  send({ message: text, key });
}

async function post(text, key) {
  // Send the message by POST to a synchronous Django view, with the CSRF token.
  const body = new FormData(composer);
  body.set("message", text);
  body.set("key", key);
  try {
    const response = await fetch(composer.action, { method: "POST", body });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) {
      if (response.status === 202) handlers.stored(answer);
      else handlers["chat.message"](answer);
      return;
    }
    element("error").textContent = answer.error ?? `The server answered ${response.status}.`;
    if (response.status === 400) return takeBack(key);
  } catch {
    // No connection: the message waits for one.
  }
  if (outbox.has(key)) transmit(text, key);
}

function showFates() {
  // Show the fate of a stored message at once in an outage, otherwise after a second.
  for (const item of element("outbox").children) {
    setFate(item, state === "live" || state === "paused" ? "Sending…" : "Not sent yet");
  }
  for (const item of log.querySelectorAll(".message:has(.fate:not(:empty))")) {
    if (!kept.has(Number(item.dataset.number))) setFate(item, "");
  }
  for (const [id, since] of kept) {
    const item = element(`message-${id}`);
    if (item && (state !== "live" || Date.now() - since > 1000)) setFate(item, "Kept; the others see it later");
  }
}

function setFate(item, words) {
  const fate = item.querySelector(".fate");
  if (fate.textContent !== words) fate.textContent = words;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = messageField.value.trim();
  if (!text || state === "stopped") return;
  const key = put(text);
  if (event.submitter?.value === "view") post(text, key);
  else transmit(text, key);
  showFates();
});

messageField.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!element("send").disabled) composer.requestSubmit(element("send"));
});

function rename(name) {
  nameField.value = name;
  localStorage.setItem("name", name);
  address.searchParams.set("name", name);
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
outbox.forEach(showWaiting);
const stored = JSON.parse(element("stored").textContent);
handlers.history(stored);
handlers["chat.tally"](stored.tally);
connect();
