// Builds what is seen. Every text from the node goes through here and ends as text: nothing is ever parsed as HTML.

// What a reader cannot see, or what reorders the text around it: controls, marks of direction, zero width, line
// separators, tags, private use and halves of pairs.
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb\u{e0000}-\u{e0fff}]|\p{Cs}/gu;

const escapeOf = (found) => {
  const code = found.codePointAt(0);
  return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, "0")}`;
};

/** Returns text in which everything can be seen. */
export const plain = (text) => String(text).replace(UNSEEN, escapeOf);

/** As plain, but lines and tabs stay. */
export const plainLines = (text) => text.replace(UNSEEN, (it) => (it === "\n" || it === "\t" ? it : escapeOf(it)));

export const byId = (id) => document.getElementById(id);

/** Says something to those who do not see the page; rarely. */
export const say = (text) => setText(byId("said"), text);

/** Makes an element: attributes by name, `on…` for listeners, false and null leave one out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Makes an element for a name that anybody may have chosen; what cannot be seen is marked. */
export function name(text, tag = "bdi") {
  const element = h(tag, { class: "name", dir: tag === "bdi" ? null : "auto" });
  let at = 0;
  for (const found of text.matchAll(UNSEEN)) {
    if (found.index > at) element.append(text.slice(at, found.index));
    const before = element.lastChild;
    if (before?.className === "unseen-character" && found.index === at) before.textContent += escapeOf(found[0]);
    else element.append(h("span", { class: "unseen-character" }, escapeOf(found[0])));
    at = found.index + found[0].length;
  }
  element.append(text.slice(at));
  return element;
}

/** Sets the text of an element when it is another one: a selection in it stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const setAttribute = (element, attribute, value) => {
  if (value === null || value === undefined) element.removeAttribute(attribute);
  else if (element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
};

/**
 * A table whose rows follow a list. Columns have a `title`, a `text` of an item and maybe `link`, `state`, `hint`,
 * `class` or `button`. Rows and cells that stay the same are left alone, so that focus and selection stay.
 */
export class Table {
  #columns;
  #key;
  #rowState;
  #rows = new Map();
  #body = h("tbody");
  #empty;

  constructor(place, { label, columns, key, rowState, empty }) {
    this.#columns = columns;
    this.#key = key;
    this.#rowState = rowState;
    const heads = columns.map((column) => h("th", { scope: "col", class: column.class }, column.title));
    const table = h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, ...heads)), this.#body);
    this.#empty = h("p", { class: "empty" }, empty);
    place.append(h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label }, table), this.#empty);
    this.#empty.hidden = true;
  }

  /** Shows a list; null when it is not known yet. */
  show(known) {
    const items = known ?? [];
    this.#empty.hidden = known === null || items.length > 0;
    const wanted = new Set(items.map(this.#key));
    for (const [key, row] of this.#rows) {
      if (wanted.has(key)) continue;
      row.remove();
      this.#rows.delete(key);
    }
    let at = this.#body.firstChild;
    for (const item of items) {
      const key = this.#key(item);
      let row = this.#rows.get(key);
      if (!row) {
        row = this.#newRow();
        this.#rows.set(key, row);
      }
      this.#fill(row, item);
      if (row === at) at = at.nextSibling;
      else this.#body.insertBefore(row, at);
    }
  }

  #newRow() {
    const cells = this.#columns.map((column) => {
      const cell = h("td", { class: column.class });
      if (column.link) cell.append(h("a"));
      if (column.button) cell.append(h("button", { type: "button", onclick: () => column.button(cell.item) }));
      return cell;
    });
    return h("tr", {}, ...cells);
  }

  #fill(row, item) {
    setAttribute(row, "data-state", this.#rowState?.(item));
    this.#columns.forEach((column, index) => {
      const cell = row.cells[index];
      const text = plain(column.text(item));
      cell.item = item;
      const inner = cell.firstElementChild ?? cell;
      setText(inner, text);
      if (column.link) {
        const { href, current } = column.link(item);
        setAttribute(inner, "href", href);
        setAttribute(inner, "aria-current", current ? "true" : null);
        setAttribute(row, "data-current", current ? "" : null);
      }
      if (column.state) setAttribute(cell, "data-state", column.state(item));
      if (column.hint) setAttribute(cell, "title", plain(column.hint(item)));
      if (column.label) setAttribute(inner, "aria-label", plain(column.label(item)));
    });
  }
}

const NUMBER = new Intl.NumberFormat("en");

export const number = (value) => NUMBER.format(value);

/** Returns a number of bytes for people. */
export function bytes(count) {
  if (count < 1000) return `${Math.round(count)} B`;
  for (const unit of ["kB", "MB", "GB"]) {
    count /= 1000;
    if (count < 999.5 || unit === "GB") return `${count < 10 ? count.toFixed(1) : Math.round(count)} ${unit}`;
  }
  return "";
}

/** Returns a time span for people, in its two largest units. */
export function span(seconds) {
  const whole = Math.floor(seconds);
  const units = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const from = units.findIndex(([size]) => whole >= size);
  if (from < 0) return "0 s";
  const parts = units.slice(from, from + 2).map(([size, unit], index) => {
    const left = index === 0 ? whole : whole % units[from][0];
    return [Math.floor(left / size), unit];
  });
  return parts.filter(([count], index) => count > 0 || index === 0).map(([count, unit]) => `${count} ${unit}`).join(" ");
}

/** Returns a time of day. */
export function clock(date, withMillis = false) {
  const two = (value) => String(value).padStart(2, "0");
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return withMillis ? `${time}.${String(date.getMilliseconds()).padStart(3, "0")}` : time;
}

const SVG = "http://www.w3.org/2000/svg";

/** A line of the last samples, with the latest as text. */
export class Spark {
  #samples;
  #label;
  #unit;
  #number = h("strong");
  #peak = h("small");
  #svg = document.createElementNS(SVG, "svg");
  #area = document.createElementNS(SVG, "path");
  #line = document.createElementNS(SVG, "path");

  constructor(place, label, unit, samples = 120) {
    this.#label = label;
    this.#unit = unit;
    this.#samples = Array(samples).fill(null);
    this.#svg.setAttribute("viewBox", `0 0 ${samples - 1} 32`);
    this.#svg.setAttribute("preserveAspectRatio", "none");
    this.#svg.setAttribute("role", "img");
    this.#area.setAttribute("class", "area");
    this.#line.setAttribute("class", "line");
    this.#svg.append(this.#area, this.#line);
    place.append(h("div", { class: "spark panel" }, h("span", { class: "label" }, label), this.#number, this.#svg, this.#peak));
  }

  add(value) {
    this.#samples.push(value);
    this.#samples.shift();
    const peak = Math.max(...this.#samples);
    const now = value === null ? "–" : this.#unit(value);
    setText(this.#number, now);
    setText(this.#peak, `peak ${this.#unit(peak)}`);
    this.#svg.setAttribute("aria-label", `${this.#label}, last two minutes: ${now} now, peak ${this.#unit(peak)}`);
    const points = [];
    this.#samples.forEach((sample, x) => {
      if (sample !== null) points.push(`${x},${(30.5 - (sample / (peak || 1)) * 28).toFixed(2)}`);
    });
    const first = this.#samples.findIndex((sample) => sample !== null);
    this.#line.setAttribute("d", points.length ? `M${points.join("L")}` : "");
    this.#area.setAttribute("d", points.length ? `M${first},32L${points.join("L")}L${this.#samples.length - 1},32Z` : "");
  }
}
