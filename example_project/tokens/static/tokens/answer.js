// Shows the words of an answer as they come. The stream begins at the first word, also after a reload.

const answer = document.getElementById("answer");
const status = document.getElementById("status");
const SILENCE = 20000; // ms without a word, while connected: the worker may have been killed

let text = "";
let isShort = false; // words are missing: the stored text will have them
let source = null;
let silence = 0;

function say(words) {
  if (status.textContent !== words) status.textContent = words;
}

function tell() {
  say(isShort ? "Some words did not come. The whole answer appears when it is finished." : "The answer is being written…");
  clearTimeout(silence);
  silence = setTimeout(() => say("Nothing has come for a while. If the worker was stopped, ask again."), SILENCE);
}

function listen() {
  source = new EventSource(answer.dataset.events);
  source.onopen = tell;
  source.addEventListener("answer.words", ({ data }) => {
    const words = JSON.parse(data);
    if (words.at > text.length) return lack();
    if (words.at < text.length) return; // These words are here already: a second EventSource begins at the first.
    text += words.text;
    answer.append(words.text);
    tell();
  });
  source.addEventListener("answer.whole", ({ data }) => {
    if (JSON.parse(data).at === text.length) finish("The answer is whole.");
    else lack();
  });
  source.addEventListener("reset", lack);
  source.onerror = () => {
    clearTimeout(silence);
    say("The connection is lost. The page connects again…");
    // After an answer other than 200, as of a proxy whose server is down, an EventSource gives up.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 1000 + Math.random() * 4000);
  };
}

function finish(words) {
  clearTimeout(silence);
  source.close();
  answer.ariaBusy = "false";
  say(words);
}

async function lack() {
  // The log does not have all words any more, or some were not sent: wait until the text is stored.
  if (isShort) return;
  isShort = true;
  tell();
  for (;;) {
    const whole = await fetch(answer.dataset.whole).then((response) => response.json()).catch(() => ({}));
    if (whole.is_whole) {
      answer.textContent = whole.text;
      return finish("Some words did not come live, so the whole answer was loaded.");
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 + Math.random() * 2000));
  }
}

listen();
