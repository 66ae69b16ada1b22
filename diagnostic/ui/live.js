// The list of what happens. Bounded: what comes faster than it can be drawn pushes the oldest out.

import { byId, clock, h, number, plain, setText } from "./dom.js";
import { toHash } from "./route.js";
import { preview } from "./value.js";

const ROWS_MAX = 200;

/** Events that wait to be drawn, the latest last. */
let waiting = [];
let total = 0;
let isDue = false;
let isPaused = false;
let place = { network: null, table: null };

const list = byId("events-list");
const only = byId("events-only");
const pause = byId("events-pause");

const isHere = (event) => event.network === place.network && event.table === place.table;

/** Takes an event as the stream tells it. */
export function add(kind, data) {
  const event = { kind, at: new Date(), ...data };
  if (only.checked && !isHere(event)) return;
  total += 1;
  waiting.push(event);
  if (waiting.length > ROWS_MAX) waiting.shift();
  if (!isDue && !isPaused) {
    isDue = true;
    requestAnimationFrame(draw);
  }
  if (isPaused) setText(pause, `Go on (${waiting.length === ROWS_MAX ? `${ROWS_MAX}+` : waiting.length})`);
}

/** Says which table is looked at. */
export function look(network, table) {
  place = { network, table };
}

function draw() {
  isDue = false;
  if (isPaused || waiting.length === 0) return;
  const rows = waiting.map(row).reverse();
  waiting = [];
  list.prepend(...rows);
  while (list.childElementCount > ROWS_MAX) list.lastElementChild.remove();
  setText(byId("events-count"), number(total));
  byId("events-empty").hidden = true;
}

function row(event) {
  const item = h("li", { "data-kind": event.kind === "member" ? event.state : event.kind });
  item.append(h("time", {}, clock(event.at, true)), h("b", {}, event.kind));
  if (event.kind === "member") {
    item.append(h("span", { class: "key" }, plain(event.node)), `is ${event.state}${event.addr ? ` at ${event.addr}` : ""}`);
  } else if (event.kind === "resync") {
    item.append("some events were missed; what is shown is read again");
  } else {
    const { network, table, key } = event;
    const name = plain(`${network} / ${table} / ${key}`);
    const link = h("a", { class: "key", href: toHash({ network, table, key }), title: name }, plain(key));
    item.append(link, h("span", { class: "of" }, told(event)));
  }
  return item;
}

function told(event) {
  const of = plain(`${event.network} / ${event.table}`);
  if (event.kind === "lost") return `${of}: taken over by ${plain(event.by)}`;
  if (event.value === undefined) return of;
  return `${of}: ${plain(preview(event.table, event.value))}`;
}

function clear() {
  waiting = [];
  total = 0;
  list.replaceChildren();
  setText(byId("events-count"), "");
  byId("events-empty").hidden = false;
}

pause.addEventListener("click", () => {
  isPaused = !isPaused;
  pause.setAttribute("aria-pressed", String(isPaused));
  setText(pause, isPaused ? "Go on" : "Pause");
  draw();
});
byId("events-clear").addEventListener("click", clear);
