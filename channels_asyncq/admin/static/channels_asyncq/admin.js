// Refreshes the page of the channel layer: every part that has changed is replaced by the one of the same view.
"use strict";
{
  const PAUSE = 5_000; // ms
  const PATIENCE = 20_000; // ms
  const state = document.getElementById("asyncq-state");
  const line = document.getElementById("asyncq-switch");
  const box = line.querySelector("input");
  const address = new URL(location.href);
  address.searchParams.set("figures", "");
  let timer;
  let isAsking = false;

  async function figures() {
    const response = await fetch(address, { signal: AbortSignal.timeout(PATIENCE) });
    // The admin leads to its login.
    if (response.redirected) throw new Error("you are signed out");
    if (!response.ok) throw new Error(`the site answers with ${response.status}`);
    return new DOMParser().parseFromString(await response.text(), "text/html");
  }

  async function refresh() {
    if (isAsking || document.hidden || !box.checked) return;
    clearTimeout(timer);
    isAsking = true;
    try {
      const found = await figures();
      for (const part of document.querySelectorAll(".asyncq [data-part]")) {
        const fresh = found.getElementById(part.id);
        if (fresh.innerHTML !== part.innerHTML) part.replaceChildren(...fresh.childNodes);
      }
      state.textContent = "";
    } catch (error) {
      state.textContent = `Not refreshed, and tried again: ${error.message}`;
    }
    isAsking = false;
    timer = setTimeout(refresh, PAUSE);
  }

  line.hidden = false;
  box.addEventListener("change", refresh);
  document.addEventListener("visibilitychange", refresh);
  timer = setTimeout(refresh, PAUSE);
}
