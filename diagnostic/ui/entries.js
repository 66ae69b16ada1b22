// The tables of a network, the entries of a table a page at a time, and one entry in full.

import { Gone, get, path, Refused } from "./api.js";
import { networkOf, stateOf } from "./cluster.js";
import { byId, bytes, h, name, number, plain, setText, Table } from "./dom.js";
import { fromHash, toHash } from "./route.js";
import { preview, sizeOf, view } from "./value.js";

const PAGE = 50;
const TABLES_MAX = 100;
const PEERS_MAX = 24;

/** What is looked at: what the address says, and for what it leaves out the first there is. */
export const place = { network: null, table: null, key: null, prefix: "", cursor: null };

/** Null until they are read, as are the entries of a page. */
let tables = null;
let tablesOf = null;
let page = { entries: null, next: null };

/* ---- Tables ---- */

const tablesTable = new Table(byId("tables-table"), {
  label: "Tables",
  key: (it) => it.table,
  empty: "Nothing was written to this network yet.",
  columns: [
    {
      title: "Table",
      class: "id",
      text: (it) => it.table,
      hint: (it) => it.table,
      link: (it) => ({ href: toHash({ network: tablesOf, table: it.table }), current: it.table === place.table }),
    },
    { title: "Entries", class: "number", text: (it) => number(it.entries) },
    { title: "Values", class: "number", text: (it) => bytes(it.value_bytes) },
    { title: "Hidden", class: "number", text: (it) => number(it.hidden), hint: () => "Entries whose owner failed", state: (it) => (it.hidden > 0 ? "warn" : null) },
    { title: "Deletes", class: "number minor", text: (it) => number(it.tombstones), hint: () => "Deletes that are still remembered" },
    { title: "Stubs", class: "number minor", text: (it) => number(it.stubs), hint: () => "Entries of nodes that have left" },
  ],
});

/** Reads the tables of the network that is looked at. */
export async function readTables() {
  const { network } = place;
  if (network === null) {
    tables = [];
    return showTables();
  }
  try {
    // Asked again and again, so not what the node is known to refuse.
    if (networkOf(network) === undefined) throw new Refused(404, { detail: `this node is not attached to network ${network}` });
    const found = (await get(path("networks", network, "tables"))).tables;
    if (network !== place.network) return;
    tables = found;
    tablesOf = network;
    showError("tables", null);
  } catch (error) {
    if (error instanceof Gone || error.status === 401) throw error;
    tables = [];
    showError("tables", error);
  }
  if (place.table === null && tables.length > 0) {
    place.table = tables[0].table;
    await readPage();
  }
  showTables();
}

function showTables() {
  const isSome = place.network !== null;
  byId("tables").hidden = !isSome;
  byId("entries").hidden = !isSome || place.table === null;
  setName(byId("tables-of"), place.network ?? "");
  const count = tables?.length ?? 0;
  const more = count > TABLES_MAX ? `, the first ${TABLES_MAX} shown` : "";
  setText(byId("tables-count"), tables === null ? "" : `${number(count)}${more}`);
  tablesTable.show(tables?.slice(0, TABLES_MAX) ?? null);
  showPeers();
  showCount();
}

function setName(element, text) {
  if (element.name === text) return;
  element.name = text;
  element.replaceChildren(name(text, "span"));
  element.title = plain(text);
}

const peersPlace = byId("peers");

function showPeers() {
  const peers = networkOf(place.network)?.peers ?? [];
  const shown = peers.slice(0, PEERS_MAX);
  const signature = JSON.stringify([place.network, peers.length, shown.map((peer) => [peer.id, peer.addr, stateOf(peer.id)])]);
  if (peersPlace.signature === signature) return;
  peersPlace.signature = signature;
  const more = peers.length - shown.length;
  peersPlace.replaceChildren(
    h("span", {}, "Attached: "),
    ...shown.map((peer) => h("span", { class: "peer", "data-state": stateOf(peer.id), title: `${plain(peer.id)} at ${peer.addr}` }, plain(peer.id))),
    more > 0 ? ` and ${number(more)} more` : "",
  );
}

/* ---- Entries ---- */

const entriesTable = new Table(byId("entries-table"), {
  label: "Entries",
  key: (it) => it.key,
  empty: "No entry is like that.",
  columns: [
    {
      title: "Key",
      class: "id key",
      text: (it) => it.key,
      hint: (it) => it.key,
      link: (it) => ({ href: toHash({ ...place, key: it.key }), current: it.key === place.key }),
    },
    { title: "Value", class: "value", text: (it) => preview(place.table, it.value) },
    { title: "Owner", class: "id owner", text: (it) => it.owner, hint: (it) => it.owner },
    { title: "Time", class: "number minor", text: (it) => number(it.time), hint: () => "Lamport time" },
    { title: "Size", class: "number minor", text: (it) => bytes(sizeOf(it.value)) },
    { title: "Version", class: "code", text: (it) => it.version.slice(0, 8), hint: (it) => it.version },
  ],
});

/** Reads the page of entries that is looked at. */
export async function readPage() {
  const asked = { ...place };
  if (asked.network === null || asked.table === null) return;
  const query = new URLSearchParams({ limit: PAGE });
  if (asked.prefix) query.set("prefix", asked.prefix);
  if (asked.cursor) query.set("cursor", asked.cursor);
  let found;
  try {
    found = await get(`${path("networks", asked.network, "tables", asked.table, "entries")}?${query}`);
  } catch (error) {
    if (error instanceof Gone || error.status === 401) throw error;
    if (!isStill(asked)) return;
    showError("page", error);
    page = { entries: [], next: null };
    return showPage();
  }
  if (!isStill(asked)) return;
  showError("page", null);
  page = found;
  showPage();
}

const isStill = (asked) => ["network", "table", "prefix", "cursor"].every((it) => asked[it] === place[it]);

const errors = { tables: null, page: null };

function showError(of, error) {
  errors[of] = error;
  const first = errors.tables ?? errors.page;
  const note = byId("place-error");
  note.hidden = first === null;
  setText(note, first === null ? "" : plain(first.message));
}

function showPage() {
  setName(byId("entries-of"), place.table ?? "");
  byId("entries").hidden = place.network === null || place.table === null;
  entriesTable.show(page.entries);
  const first = byId("page-first");
  first.hidden = !place.cursor;
  first.href = toHash({ ...place, key: null, cursor: null });
  const next = byId("page-next");
  next.hidden = page.next === null;
  next.href = toHash({ ...place, key: null, cursor: page.next });
  byId("entries").querySelector(".pager").hidden = first.hidden && next.hidden;
  showCount();
}

function showCount() {
  const all = tables?.find((it) => it.table === place.table)?.entries;
  const shown = page.entries?.length ?? 0;
  const of = all === undefined ? "" : ` of ${number(all)}`;
  setText(byId("entries-count"), `${number(shown)}${shown === all ? "" : of}`);
  setText(byId("page-note"), shown === 0 ? "" : `${place.prefix ? "matching, " : ""}${shown} at a time`);
}

const search = byId("search");
let typed = null;
search.addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => {
    // Each letter is no step back of its own.
    location.replace(toHash({ ...place, key: null, prefix: search.value, cursor: null }));
  }, 120);
});

/** Takes the place from the address. Names that it leaves out are kept until there are others. */
export function go(networks) {
  const asked = fromHash(location.hash);
  const network = asked.network ?? (networks.includes(place.network) ? place.network : networks[0]) ?? null;
  const isOther = network !== place.network;
  const table = asked.table ?? (isOther ? null : place.table);
  const before = { ...place };
  Object.assign(place, { network, table, key: asked.key ?? null, prefix: asked.prefix ?? "", cursor: asked.cursor ?? null });
  if (isOther) {
    tables = null;
    tablesOf = network;
  }
  if (document.activeElement !== search && search.value !== place.prefix) search.value = place.prefix;
  if (isOther || place.table !== before.table) {
    page = { entries: null, next: null };
    showError("page", null);
    showPage();
  }
  showTables();
  entriesTable.show(page.entries);
  const isOtherEntry = place.key !== before.key || isOther || place.table !== before.table;
  if (isOtherEntry) openEntry(before.key);
  return { isOther, isOtherPage: !isStill(before), isOtherEntry };
}

/* ---- One entry ---- */

const drawer = byId("entry");
let shown = null;

/** Asks for an entry. Browsers take `.` and `..` for directories, so these keys are asked for as the first of a page. */
async function readOne({ network, table, key }) {
  if (key !== "." && key !== "..") return get(path("networks", network, "tables", table, "entries", key));
  const query = new URLSearchParams({ limit: 1, prefix: key });
  const [first] = (await get(`${path("networks", network, "tables", table, "entries")}?${query}`)).entries;
  if (first?.key !== key) throw new Refused(404, { title: "There is no such entry", detail: "there is no such entry" });
  return first;
}

/** Reads the entry that is open. */
export async function readEntry() {
  const asked = { ...place };
  if (asked.key === null || asked.table === null) return;
  try {
    const entry = await readOne(asked);
    if (place.key !== asked.key || place.table !== asked.table) return;
    const owner = stateOf(entry.owner);
    const signature = `${entry.version} ${owner}`;
    if (shown?.signature === signature && !drawer.hasAttribute("data-gone")) return;
    showEntry(asked, entry, owner);
    shown = { signature };
  } catch (error) {
    if (error instanceof Gone || error.status === 401) throw error;
    if (place.key === asked.key && place.table === asked.table) showNoEntry(error);
  }
}

function openEntry(keyBefore) {
  shown = null;
  if (place.key === null) {
    drawer.hidden = true;
    const row = [...byId("entries-table").querySelectorAll("a")].find((it) => it.title === keyBefore || it.textContent === keyBefore);
    if (keyBefore !== null && row && document.activeElement === document.body) row.focus({ preventScroll: true });
    return;
  }
  const close = h("a", { href: toHash({ ...place, key: null }), class: "close", "aria-label": "Close the entry" }, "Close");
  const note = h("p", { class: "error", id: "entry-note", role: "status", hidden: true });
  drawer.replaceChildren(h("div", { class: "bar" }, h("h2", { id: "entry-title" }, "Entry"), close), note, h("div", { id: "entry-body" }));
  drawer.removeAttribute("data-gone");
  drawer.hidden = false;
  drawer.scrollTop = 0;
  drawer.focus({ preventScroll: true });
}

function showEntry({ network, table, key }, entry, owner) {
  drawer.removeAttribute("data-gone");
  byId("entry-note").hidden = true;
  const owned = h("span", {}, name(entry.owner));
  if (owner !== undefined) owned.append(" ", h("span", { class: "pill", "data-state": owner }, owner));
  const facts = [
    ["Key", name(key)],
    ["Table", name(table)],
    ["Network", name(network)],
    ["Owner", owned],
    ["Lamport time", number(entry.time)],
    ["Version", h("code", {}, entry.version)],
    ["Size", `${number(sizeOf(entry.value))} bytes`],
  ];
  byId("entry-body").replaceChildren(
    h("dl", { class: "record" }, ...facts.flatMap(([title, it]) => [h("dt", {}, title), h("dd", {}, it)])),
    ...view(table, entry.value),
  );
}

function showNoEntry(error) {
  const note = byId("entry-note");
  note.hidden = false;
  setText(note, `${plain(error.title ?? "")}: ${plain(error.message)}`);
  drawer.setAttribute("data-gone", "");
}
