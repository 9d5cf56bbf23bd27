// A chat over the client, and what happens to its connection. What survives a reload is the client's work; the page
// keeps only the turns that are done.

import { Tramontane } from "./client/index.js";

const TURNS = "tramontane.playground.turns";
const ANSWER = "tramontane.playground.answer";
const KEY = "tramontane.playground.key";

const $ = (id) => document.getElementById(id);
const turns = JSON.parse(sessionStorage.getItem(TURNS) ?? "[]");

/** The connections of this page, so that a button can cut them. */
const connections = new Set();

const tramontane = new Tramontane(new URL(".", location.href).href, {
  async fetch(url, init) {
    const cut = new AbortController();
    const end = () => {
      connections.delete(cut);
      cut.abort();
    };
    init.signal?.addEventListener("abort", end);
    connections.add(cut);
    return withKey(url, { ...init, signal: cut.signal });
  },
});

/** Ask with the key of this tab; when the server wants another one, ask the user for it, and then once more. */
async function withKey(url, init) {
  for (;;) {
    const headers = new Headers(init.headers);
    const key = sessionStorage.getItem(KEY);
    if (key) headers.set("authorization", `Bearer ${key}`);
    const response = await fetch(url, { ...init, headers });
    if (response.status != 401 || !(await unlocked(key))) return response;
  }
}

/** Whether there is another key than the one that was refused: somebody has typed it, or does so now. */
async function unlocked(refused) {
  if (sessionStorage.getItem(KEY) == refused) {
    const dialog = $("locked");
    if (!dialog.open) dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  }
  return sessionStorage.getItem(KEY) != refused;
}

let running;

function ask(question) {
  turns.push({ role: "user", content: question });
  remember();
  show("user", question);
  location.hash = "";
  clearTimeline();
  const messages = turns.map(({ role, content }) => ({ role, content }));
  note("asked", "one POST, under a key of its own");
  follow((options) => tramontane.stream({ model: $("model").value, messages }, options));
}

/** Show a stream as it comes. `open` makes it from the callbacks. */
function follow(open) {
  const turn = show("assistant", "");
  turn.classList.add("running");
  let connected = false;
  const draw = (stream) => {
    turn.firstChild.data = stream.text;
    $("seq").textContent = stream.cursor ?? "–";
    $("length").textContent = stream.text.length;
    if (!stream.jobId) return;
    $("job").textContent = stream.jobId;
    $("job").href = `#${stream.jobId}`;
  };
  const told = (event, stream) => {
    draw(stream);
    if (!connected) {
      connected = true;
      note("followed", "another tab holds the connection and tells this one", "good");
      state("streaming");
    }
  };
  const stream = open({
    storageKey: ANSWER,
    onConnect({ after }) {
      connected = true;
      note(after ? `resumed after event ${after}` : "connected", after ? "GET with Last-Event-ID" : "", "good");
      state("streaming");
      $("cut").disabled = false;
    },
    onReconnect({ delay, error, after }) {
      note("dropped", `at event ${after ?? "–"}, ${reason(error)}; again in ${Math.round(delay)} ms`, "wait");
      state("reconnecting");
      $("cut").disabled = true;
    },
    onStart: told,
    onChunk: told,
    onAttempt({ attempt, mode, keep, reason }, stream) {
      note(`attempt ${attempt}: ${mode}`, `${reason}; ${keep} characters stay`, "wait");
      draw(stream);
    },
    onComplete({ len, sha256, usage }, stream) {
      const proof = stream.verified ? "verified ✓" : "complete";
      note(proof, `${len} characters, sha256 ${sha256.slice(0, 12)}…`, "good");
      end(stream, stream.verified ? "verified" : "complete", `${usage?.total_tokens ?? "–"} tokens, ${proof}`, "good");
    },
    onError(error, stream) {
      note("failed", `${error.message} (${error.code ?? error.name})`, "bad");
      end(stream, "failed", error.message, "bad");
    },
  });
  running = stream;
  stream.done.catch(() => {});
  draw(stream);
  if (stream.text) note("reloaded", `the page came back with ${stream.text.length} characters`);
  state("connecting");
  $("cancel").disabled = false;
  turn.scrollIntoView({ block: "nearest" });

  function end(stream, how, words, tone) {
    draw(stream);
    turn.classList.remove("running");
    addNote(turn, words, tone);
    turns.push({ role: "assistant", content: stream.text, words, tone });
    remember();
    state(how);
    running = undefined;
    $("cut").disabled = $("cancel").disabled = true;
    for (const button of document.querySelectorAll("#ask button")) button.disabled = false;
  }
  for (const button of document.querySelectorAll("#ask button")) button.disabled = true;
}

function show(role, text, words, tone) {
  const turn = document.createElement("li");
  turn.className = `turn ${role}`;
  turn.append(document.createTextNode(text));
  if (words) addNote(turn, words, tone);
  $("turns").append(turn);
  return turn;
}

function addNote(turn, words, tone) {
  const note = document.createElement("span");
  note.className = `note ${tone}`;
  note.textContent = words;
  turn.append(note);
}

function note(what, more = "", tone = "") {
  const item = document.createElement("li");
  item.className = tone;
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString([], { timeStyle: "medium" });
  const title = document.createElement("strong");
  title.textContent = what;
  item.append(time, title, more && ` – ${more}`);
  $("timeline").append(item);
  $("hint").hidden = true;
  item.scrollIntoView({ block: "nearest" });
}

function clearTimeline() {
  $("timeline").replaceChildren();
}

function state(name) {
  $("state").textContent = $("state").dataset.state = name;
}

function reason(error) {
  return error?.name == "AbortError" ? "the connection was cut" : (error?.message ?? "the connection was lost");
}

function remember() {
  sessionStorage.setItem(TURNS, JSON.stringify(turns));
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question || running) return;
  $("question").value = "";
  ask(question);
});

$("question").addEventListener("keydown", (event) => {
  if (event.key == "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});

$("cut").addEventListener("click", () => {
  for (const cut of [...connections]) cut.abort();
});

$("cancel").addEventListener("click", () => {
  if (!running?.jobId) return;
  $("cancel").disabled = true;
  tramontane.cancel(running.jobId).catch((error) => note("not cancelled", error.message, "bad"));
});

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  $("locked").close();
});

$("later").addEventListener("click", () => $("locked").close());

$("fresh").addEventListener("click", () => {
  sessionStorage.removeItem(TURNS);
  sessionStorage.removeItem(ANSWER);
  location.replace(location.pathname);
});

for (const { role, content, words, tone } of turns) show(role, content, words, tone);
const job = location.hash.slice(1);
if (sessionStorage.getItem(ANSWER)) follow((options) => tramontane.resume(ANSWER, options));
else if (job && !turns.length) follow((options) => tramontane.stream(job, options));
