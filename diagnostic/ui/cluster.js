// This node, its traffic, the members of the cluster and the networks.

import { Gone, get, path, Refused } from "./api.js";
import { byId, bytes, clock, h, name, number, plain, say, setText, Spark, span, Table } from "./dom.js";
import { toHash } from "./route.js";

const MEMBERS_PAGE = 50;
/** Networks that are shown; the others can be reached by address. */
const NETWORKS_MAX = 100;
/** How long a check may take: every peer is asked, and asked again while it differs. */
const CHECK_MS = 60_000;
/** Keys of a check that are named a peer. */
const DIFFERENCES_MAX = 50;

/* ---- This node ---- */

const facts = byId("facts");
let node = null;

const health = (score) => (score === 0 ? "healthy" : `late, score ${score}`);

/** Reads what this node is. */
export async function readNode() {
  node = await get("/v1/node");
  document.title = `${plain(node.id)} · NetworkDB`;
  byId("node-id").replaceChildren(name(node.id, "span"));
  const shown = [
    ["host", node.hostname],
    ["cluster", node.cluster],
    ["gossip", node.is_sealed ? "sealed" : "in the open", node.is_sealed ? "good" : "warn"],
    ["up", span(node.uptime_seconds)],
    ["health", health(node.health_score), node.health_score === 0 ? "good" : "warn"],
    ["address", node.advertised_addr],
  ];
  if (!node.in_cluster) shown.unshift(["state", "has left the cluster", "bad"]);
  if (facts.childElementCount !== shown.length) {
    facts.replaceChildren(...shown.map(() => h("div", {}, h("dt"), h("dd"))));
  }
  shown.forEach(([title, text, state], index) => {
    const [term, fact] = facts.children[index].children;
    setText(term, title);
    setText(fact, plain(text));
    fact.title = plain(text);
    fact.dataset.state = state ?? "";
  });
  setText(byId("foot"), `NetworkDB ${node.version}, generation ${node.generation}.`);
}

/* ---- Traffic ---- */

const sparks = [
  ["Received", (rate) => `${bytes(rate)}/s`],
  ["Sent", (rate) => `${bytes(rate)}/s`],
  ["Events in", (rate) => `${number(Math.round(rate))}/s`],
  ["Events out", (rate) => `${number(Math.round(rate))}/s`],
  ["Queued", number],
].map(([label, unit]) => new Spark(byId("traffic"), label, unit));

let lastStats = null;
const queues = new Map();

/** Reads the counters and adds what they grew by. */
export async function readStats() {
  const stats = await get("/v1/stats");
  const at = performance.now();
  const sums = [
    stats.datagram_bytes_received + stats.frame_bytes_received,
    stats.datagram_bytes_sent + stats.frame_bytes_sent,
    stats.events_received,
    stats.events_pushed + stats.events_relayed,
  ];
  if (lastStats !== null) {
    const seconds = (at - lastStats.at) / 1000;
    // A node that was started again counts from zero.
    sums.forEach((sum, index) => sparks[index].add(Math.max(0, sum - lastStats.sums[index]) / seconds));
    sparks[4].add([...queues.values()].reduce((sum, queue) => sum + queue, 0));
  }
  lastStats = { at, sums };
}

/* ---- Members ---- */

const ORDER = ["down", "suspect", "heard", "alive", "left"];
let members = [];
let states = new Map();
let wanted = null;
let memberPage = 0;
const memberFilter = byId("members-filter");

const orNothing = (value, unit = (it) => it) => (value === null ? "–" : unit(value));

const membersTable = new Table(byId("members-table"), {
  label: "Members",
  key: (member) => member.id,
  rowState: (member) => member.state,
  empty: "No member is like that.",
  columns: [
    { title: "State", class: "state", text: (member) => member.state, state: (member) => member.state },
    {
      title: "Node",
      class: "id",
      text: (member) => (member.id === node?.id ? `${member.id} (this)` : member.id),
      hint: (member) => member.id,
    },
    { title: "Address", class: "addr", text: (member) => orNothing(member.addr) },
    { title: "Round trip", class: "number", text: (member) => orNothing(member.round_trip_ms, (it) => `${it.toFixed(it < 10 ? 2 : 0)} ms`) },
    { title: "Incarn.", class: "number minor", text: (member) => orNothing(member.incarnation, number), hint: () => "How often it has refuted that it failed" },
    { title: "Generation", class: "code minor", text: (member) => member.generation, hint: (member) => member.generation },
  ],
});

/** Reads the members; returns those whose state is another one than before, as [id, state]. */
export async function readMembers() {
  const found = (await get("/v1/members")).members;
  const changed = found.filter((it) => states.has(it.id) && states.get(it.id) !== it.state).map((it) => [it.id, it.state]);
  members = found.sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state));
  states = new Map(members.map((member) => [member.id, member.state]));
  showMembers();
  return changed;
}

/** Returns the state of a member, undefined when nobody knows it. */
export const stateOf = (id) => states.get(id);

function showMembers() {
  const counts = new Map(ORDER.map((state) => [state, 0]));
  for (const member of members) counts.set(member.state, (counts.get(member.state) ?? 0) + 1);
  showCounts([...counts].filter(([state, count]) => count > 0 || state === "alive"));
  const text = memberFilter.value.toLowerCase();
  const has = (member) => member.id.toLowerCase().includes(text) || (member.addr ?? "").includes(text);
  const chosen = members.filter((member) => (wanted === null || member.state === wanted) && has(member));
  const pages = Math.max(1, Math.ceil(chosen.length / MEMBERS_PAGE));
  memberPage = Math.min(memberPage, pages - 1);
  const from = memberPage * MEMBERS_PAGE;
  const shown = chosen.slice(from, from + MEMBERS_PAGE);
  membersTable.show(shown);
  byId("members-pager").hidden = pages === 1;
  setText(byId("members-note"), `${from + 1} to ${from + shown.length} of ${number(chosen.length)}`);
  byId("members-back").disabled = memberPage === 0;
  byId("members-on").disabled = memberPage === pages - 1;
}

function showCounts(counts) {
  const chips = byId("members-counts");
  while (chips.childElementCount > counts.length) chips.lastElementChild.remove();
  while (chips.childElementCount < counts.length) chips.append(h("li", {}, h("button", { type: "button", onclick: choose })));
  counts.forEach(([state, count], index) => {
    const chip = chips.children[index].firstElementChild;
    chip.dataset.state = state;
    chip.setAttribute("aria-pressed", String(wanted === state));
    setText(chip, `${number(count)} ${state}`);
  });
}

function choose(event) {
  const { state } = event.currentTarget.dataset;
  wanted = wanted === state ? null : state;
  memberPage = 0;
  showMembers();
}

memberFilter.addEventListener("input", () => {
  memberPage = 0;
  showMembers();
});
for (const [id, step] of [["members-back", -1], ["members-on", 1]]) {
  byId(id).addEventListener("click", () => {
    memberPage += step;
    showMembers();
  });
}

/* ---- Networks ---- */

/** What is known of each network, by name. */
const networks = new Map();
const checks = new Map();
let next = 0;
let current = null;

const short = (digest) => digest.slice(0, 8);
const known = (text) => (it) => (it.facts === null ? "…" : text(it.facts));

const networksTable = new Table(byId("networks-table"), {
  label: "Networks",
  key: (it) => it.network,
  empty: "This node is not attached to a network.",
  columns: [
    {
      title: "Network",
      class: "id",
      text: (it) => it.network,
      hint: (it) => it.network,
      link: (it) => ({ href: toHash({ network: it.network }), current: it.network === current }),
    },
    { title: "Entries", class: "number", text: known((it) => number(it.entries)) },
    { title: "Hidden", class: "number minor", text: known((it) => number(it.hidden)), hint: () => "Entries whose owner failed" },
    { title: "Deletes", class: "number minor", text: known((it) => number(it.tombstones)), hint: () => "Deletes that are still remembered" },
    { title: "Queue", class: "number", text: known((it) => number(it.queue)), hint: () => "Events that wait to be sent" },
    { title: "Nodes", class: "number slim", text: (it) => (it.peers === null ? "…" : number(it.peers.length)) },
    { title: "Digest", class: "code", text: known((it) => short(it.digest)), hint: known((it) => it.digest) },
    {
      title: "Sync",
      class: "slim",
      text: known((it) => (it.sync.is_done ? "done" : `${number(it.sync.records)} so far`)),
      hint: known((it) => `${number(it.sync.records)} records in ${span(it.sync.elapsed_ms / 1000)}`),
      state: (it) => (it.facts === null ? null : it.facts.sync.is_done ? "good" : "warn"),
    },
    {
      title: "Consistency",
      class: "verdict",
      text: (it) => checks.get(it.network)?.text ?? "Check",
      state: (it) => checks.get(it.network)?.state ?? null,
      button: (it) => check(it.network),
      label: (it) => `${checks.get(it.network)?.text ?? "Not checked"}: check the consistency of ${it.network}`,
    },
  ],
});

/** Reads which networks there are, and the facts of the current one and of one other. Returns their names, those with entries first. */
export async function readNetworks(chosen) {
  const names = (await get("/v1/networks")).networks;
  const there = new Set(names);
  for (const gone of [...networks.keys()].filter((it) => !there.has(it))) {
    networks.delete(gone);
    queues.delete(gone);
    checks.delete(gone);
  }
  for (const it of names) if (!networks.has(it)) networks.set(it, { network: it, facts: null, peers: null });
  current = chosen ?? names[0] ?? null;
  const shown = names.slice(0, NETWORKS_MAX);
  const now = new Set(shown.filter((it) => networks.get(it).facts === null).slice(0, 8));
  if (there.has(current)) now.add(current);
  if (shown.length > 0) now.add(shown[next++ % shown.length]);
  for (const it of now) await readNetwork(it);
  showNetworks();
  const more = names.length > shown.length ? `, the first ${NETWORKS_MAX} shown` : "";
  setText(byId("networks-count"), `${number(names.length)}${more}`);
  const isEmpty = (it) => (networks.get(it).facts?.entries ?? 0) === 0;
  return names.toSorted((a, b) => isEmpty(a) - isEmpty(b));
}

async function readNetwork(it) {
  const known = networks.get(it);
  try {
    known.facts = await get(path("networks", it));
    known.peers = (await get(path("networks", it, "peers"))).peers;
    queues.set(it, known.facts.queue);
  } catch (error) {
    // The node may have left it a moment ago, or a browser cannot name it.
    if (error instanceof Gone || error.status === 401) throw error;
  }
}

/** Marks the network that is looked at. */
export function lookAt(network) {
  current = network;
  showNetworks();
}

const showNetworks = () => networksTable.show([...networks.values()].slice(0, NETWORKS_MAX));

/** Returns what is known of a network. */
export const networkOf = (network) => networks.get(network);

/* ---- Consistency ---- */

async function check(network) {
  if (checks.get(network)?.isRunning) return;
  checks.set(network, { isRunning: true, text: "checking…", state: null });
  showNetworks();
  const place = byId("check");
  try {
    const found = await get(`${path("networks", network)}/consistency`, CHECK_MS);
    checks.set(network, verdictOf(found));
    place.replaceChildren(...report(network, found));
  } catch (error) {
    const text = error instanceof Refused && error.status === 404 && error.kind.endsWith("unknown-path")
      ? "This node is of a version that cannot check."
      : error.message;
    checks.set(network, { isRunning: false, text: "failed", state: "warn" });
    place.replaceChildren(head(network), h("p", { class: "error" }, plain(text)));
  }
  place.hidden = false;
  say(`Check of ${plain(network)}: ${checks.get(network).text}`);
  showNetworks();
}

function verdictOf(found) {
  const count = (outcome) => found.peers.filter((peer) => peer.outcome === outcome).length;
  const [differ, failed] = [count("differs"), count("failed")];
  if (differ > 0) return { isRunning: false, text: `${differ} of ${found.peers.length} differ`, state: "bad" };
  if (failed > 0) return { isRunning: false, text: `${failed} did not answer`, state: "warn" };
  if (!found.is_consistent) return { isRunning: false, text: "differ", state: "bad" };
  return { isRunning: false, text: found.peers.length === 0 ? "nobody else" : "all agree", state: "good" };
}

const head = (network, ...more) =>
  h("div", { class: "bar" }, h("h3", {}, "Check of ", name(network), ` at ${clock(new Date())}`), ...more,
    h("button", { type: "button", onclick: () => { byId("check").hidden = true; } }, "Close"));

const WORDS = { equal: ["agrees", "good"], differs: ["differs", "bad"], failed: ["no answer", "warn"] };

function report(network, found) {
  const peers = found.peers.map((peer) => {
    const [word, state] = WORDS[peer.outcome] ?? [plain(peer.outcome), "warn"];
    const item = h("li", {}, h("span", { class: "pill", "data-state": state }, word), " ", name(peer.id), h("small", {}, ` ${plain(peer.addr)}`));
    if (peer.reason) item.append(h("p", { class: "note" }, plain(peer.reason)));
    if (peer.tables?.length > 0) item.append(h("p", { class: "note" }, "Tables that differ: ", ...peer.tables.flatMap((table, index) => [index > 0 ? ", " : "", name(table)])));
    const keys = peer.differences ?? [];
    if (keys.length > 0) item.append(h("ul", { class: "differences" }, ...keys.slice(0, DIFFERENCES_MAX).map((it) => difference(network, it))));
    if (peer.is_cut || keys.length > DIFFERENCES_MAX) item.append(h("p", { class: "note" }, "There are more than these."));
    return item;
  });
  return [head(network, h("code", { title: found.digest }, short(found.digest))), h("ul", { class: "outcomes" }, ...peers)];
}

const side = (record) =>
  record === null ? "nothing" : `${record.is_deleted ? "a delete" : short(record.version)} of ${plain(record.owner)} at time ${record.time}`;

const difference = (network, it) =>
  h("li", {}, name(it.table), " / ", h("a", { href: toHash({ network, table: it.table, key: it.key }) }, name(it.key)), h("small", {}, ` here ${side(it.here)}, there ${side(it.there)}`));
