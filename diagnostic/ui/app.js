// Puts the page together: what is asked when, what the address means, and what is said when the node does not answer.

import { hooks, isTaken, Poller, Stream, token } from "./api.js";
import { lookAt, readMembers, readNetworks, readNode, readStats } from "./cluster.js";
import { byId, clock, plain, say, setText, span } from "./dom.js";
import { go, place, readEntry, readPage, readTables } from "./entries.js";
import * as live from "./live.js";
import { toHash } from "./route.js";

const THEMES = ["auto", "light", "dark"];

/* ---- What is asked, and when ---- */

let networks = [];

const pollers = {
  node: new Poller(5000, readNode),
  stats: new Poller(1000, readStats),
  members: new Poller(1000, async () => {
    for (const [id, state] of (await readMembers()).slice(0, 3)) say(`${plain(id)} is ${state}`);
  }),
  networks: new Poller(1000, async () => {
    networks = await readNetworks(place.network);
    follow();
    await readTables();
  }),
  page: new Poller(10_000, readPage),
  entry: new Poller(10_000, readEntry),
};

const all = Object.values(pollers);

/** Looks at what the address says. */
function follow() {
  const { isOther, isOtherPage, isOtherEntry } = go(networks);
  live.look(place.network, place.table);
  lookAt(place.network);
  if (isOtherPage) pollers.page.now();
  if (isOtherEntry) pollers.entry.now();
  return isOther;
}

window.addEventListener("hashchange", () => {
  if (follow() || place.table === null) pollers.networks.now();
});

/* ---- What happens ---- */

const pill = byId("stream");
let streamState = ["connecting"];

const stream = new Stream("/v1/watch?snapshot=false", heard, (...state) => {
  streamState = state;
  showStream();
});

function heard(kind, data) {
  if (kind === "synced") {
    // From here on nothing is missed; what was read before may be old.
    for (const poller of [pollers.page, pollers.entry, pollers.members]) poller.now();
    return;
  }
  live.add(kind, data);
  if (kind === "member") {
    pollers.members.now();
  } else if (data.network === place.network && data.table === place.table) {
    pollers.page.now();
    if (data.key === place.key) pollers.entry.now();
  } else if (data.network === place.network && place.table === null) {
    pollers.networks.now();
  }
}

function showStream() {
  const [state, until] = streamState;
  pill.dataset.state = state;
  const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1000));
  setText(pill, state === "waiting" ? `reconnecting in ${seconds} s` : state);
}

/* ---- When it does not answer ---- */

let lastAnswer = new Date();
let isGone = false;
let isAsked = false;

hooks.answered = () => {
  lastAnswer = new Date();
  if (!isGone) return;
  isGone = false;
  showBanner();
  say("The node answers again");
  stream.hurry();
  for (const poller of all) poller.now();
};

hooks.gone = () => {
  if (!isGone && !document.hidden) {
    isGone = true;
    showBanner();
    say("The node does not answer");
  }
};

hooks.unauthorized = () => {
  if (isAsked) return;
  isAsked = true;
  stop();
  byId("content").hidden = true;
  byId("ask").hidden = false;
  setText(byId("ask-error"), token.get() === null ? "" : "The node does not take the token any more.");
  byId("token").focus();
};

function showBanner() {
  const banner = byId("banner");
  banner.hidden = !isGone;
  document.body.toggleAttribute("data-stale", isGone);
  if (isGone) {
    const age = span((Date.now() - lastAnswer) / 1000);
    setText(banner, `The node does not answer. What you see is from ${clock(lastAnswer)}, ${age} ago. Trying again.`);
  }
}

setInterval(() => {
  showStream();
  if (isGone) showBanner();
}, 500);

/* ---- The token ---- */

byId("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = byId("token").value.trim();
  const error = byId("ask-error");
  setText(error, "");
  if (!token.isOne(text)) return setText(error, "A token has no spaces and only ASCII characters.");
  try {
    if (!(await isTaken(text))) return setText(error, "The node does not take this token.");
  } catch {
    return setText(error, "The node does not answer.");
  }
  token.set(text);
  byId("token").value = "";
  isAsked = false;
  byId("ask").hidden = true;
  byId("content").hidden = false;
  start();
  byId("main").focus();
});

byId("forget").addEventListener("click", () => {
  token.forget();
  location.reload();
});

/* ---- Start and stop ---- */

function start() {
  byId("forget").hidden = token.get() === null;
  for (const poller of all) poller.start();
  stream.start();
}

function stop() {
  for (const poller of all) poller.stop();
  stream.stop();
}

// A page that nobody sees asks nothing, and leaves its connection to others: a browser has six for a server.
document.addEventListener("visibilitychange", () => {
  if (isAsked) return;
  if (document.hidden) stop();
  else start();
});

/* ---- Keys and theme ---- */

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.closest("input, textarea, select") !== null;
  if (event.key === "/" && !isTyping) {
    const search = byId("entries").hidden ? byId("members-filter") : byId("search");
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape" && place.key !== null && !isTyping) {
    location.hash = toHash({ ...place, key: null });
  }
});

byId("skip").addEventListener("click", (event) => {
  // The part after # says what is looked at.
  event.preventDefault();
  byId("main").focus();
});

const themeButton = byId("theme");

function showTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  setText(themeButton, `Theme: ${theme}`);
  themeButton.setAttribute("aria-label", `Theme: ${theme}. Change it`);
}

themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme ?? "auto";
  const theme = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  showTheme(theme);
  try {
    localStorage.setItem("networkdb-theme", theme);
  } catch {
    // It holds for this page only.
  }
});

showTheme(document.documentElement.dataset.theme ?? "auto");
follow();
if (!document.hidden) start();
