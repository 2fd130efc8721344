"use strict";
// What htmx and its extension leave to the page: to say how the connection is, and to come back where they give up.

const say = (id, words) => {
  const line = document.getElementById(id);
  if (line.textContent !== words) line.textContent = words;
};

addEventListener("htmx:sseOpen", () => say("status", "Live"));
addEventListener("htmx:sseError", () => say("status", "Connection lost. The page connects again…"));

addEventListener("htmx:sseBeforeMessage", ({ detail: { type, data } }) => {
  // The table may have been loaded after a new order was stored, and before its row came: show it once.
  const [row] = /order-\d+/.exec(data) ?? [];
  if (type === "order.new") document.getElementById(row)?.remove();
});

addEventListener("htmx:sseMessage", ({ detail: { lastEventId } }) => {
  // After an answer other than 200, as of a proxy whose server is down, a browser gives up its EventSource, and
  // the extension makes another one, which knows no last id. So keep the id in the address.
  const table = document.getElementById("orders");
  if (lastEventId) table.setAttribute("sse-connect", `${table.dataset.events}?since=${encodeURIComponent(lastEventId)}`);
});

addEventListener("htmx:confirm", (event) => {
  // The table is loaded again after a reset: by all pages, so at different times.
  if (event.detail.elt.id !== "orders") return;
  event.preventDefault();
  say("recovery", "Some changes did not come live. The table is being loaded…");
  setTimeout(() => event.detail.issueRequest(), Math.random() * 1000);
});

addEventListener("htmx:afterRequest", ({ detail: { requestConfig: { elt }, successful } }) => {
  // Not the target of the event: the table that asked is gone by now.
  if (elt.id !== "orders") return;
  if (successful) say("recovery", "Some changes did not come live, so the table was loaded again.");
  else setTimeout(() => htmx.trigger(elt, "sse:reset"), 1000 + Math.random() * 2000);
});
