// Makes values readable: text when they are text, the records of Docker's overlay driver and service discovery by their
// fields, bytes in hex otherwise.

import { bytes, h, name, plainLines } from "./dom.js";

/** Bytes of a value that are shown in hex. */
const HEX_BYTES_MAX = 16384;
/** Characters of a value in a list. */
const PREVIEW_CHARS = 120;
/** Records in a record, so that a chain of them ends. */
const FIELDS_MAX = 1000;

const UTF8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Decodes base64. */
export function decode(base64) {
  const binary = atob(base64);
  const decoded = new Uint8Array(binary.length);
  for (let at = 0; at < binary.length; at += 1) decoded[at] = binary.charCodeAt(at);
  return decoded;
}

function text(value) {
  try {
    return UTF8.decode(value);
  } catch {
    return null;
  }
}

// Text that people write has lines and tabs, and no other controls.
const isPrintable = (decoded) => decoded !== null && !/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/.test(decoded);

const hexOf = (value) => Array.from(value, (byte) => byte.toString(16).padStart(2, "0")).join(" ");

/** Returns bytes as lines of offset, hex and ASCII. */
export function hexDump(value) {
  const lines = [];
  for (let at = 0; at < Math.min(value.length, HEX_BYTES_MAX); at += 16) {
    const part = value.subarray(at, at + 16);
    const ascii = Array.from(part, (byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${hexOf(part).padEnd(47)}  ${ascii}`);
  }
  return lines.join("\n");
}

const PORT = {
  1: ["name", "text"],
  2: ["protocol", "protocol"],
  3: ["target port", "number"],
  4: ["published port", "number"],
};

// The records by table, as in networkdb's peers: fields by number.
const RECORDS = {
  overlay_peer_table: {
    1: ["endpoint IP", "text"],
    2: ["endpoint MAC", "text"],
    3: ["tunnel endpoint IP", "text"],
  },
  endpoint_table: {
    1: ["name", "text"],
    2: ["service name", "text"],
    3: ["service id", "text"],
    4: ["virtual IP", "text"],
    5: ["endpoint IP", "text"],
    6: ["ingress port", PORT],
    7: ["alias", "text"],
    8: ["task alias", "text"],
    9: ["service disabled", "flag"],
  },
};

const PROTOCOLS = ["TCP", "UDP", "SCTP"];

function varint(value, at) {
  let result = 0;
  for (let index = 0; index < 10; index += 1) {
    const byte = value[at + index];
    if (byte === undefined) return null;
    result += (byte & 127) * 2 ** (7 * index);
    if (byte < 128) return Number.isSafeInteger(result) ? [result, at + index + 1] : null;
  }
  return null;
}

function scalar(kind, number) {
  if (kind === "flag") return number === 0 ? "no" : "yes";
  if (kind === "protocol") return PROTOCOLS[number] ?? `protocol ${number}`;
  return String(number);
}

/** Reads a message; returns its fields as [name, text or fields], null when the bytes are none. */
function message(value, shape) {
  const fields = [];
  let at = 0;
  while (at < value.length) {
    const tag = varint(value, at);
    if (tag === null || fields.length >= FIELDS_MAX) return null;
    const [field, wire] = [Math.floor(tag[0] / 8), tag[0] % 8];
    const [title, kind] = shape[field] ?? [null, null];
    const isScalar = kind === "flag" || kind === "number" || kind === "protocol";
    at = tag[1];
    if (wire === 0) {
      const read = varint(value, at);
      if (read === null || (title !== null && !isScalar)) return null;
      at = read[1];
      fields.push([title ?? `field ${field}`, scalar(kind, read[0])]);
    } else if (wire === 2) {
      const length = varint(value, at);
      if (length === null || length[1] + length[0] > value.length || isScalar || field === 0) return null;
      const bytesOf = value.subarray(length[1], length[1] + length[0]);
      const read = kind === null ? hexOf(bytesOf) : kind === "text" ? text(bytesOf) : message(bytesOf, kind);
      if (read === null) return null;
      at = length[1] + length[0];
      fields.push([title ?? `field ${field}`, read]);
    } else {
      return null;
    }
  }
  return fields;
}

/** Returns the fields of a record of a known table, null when there are none. */
export function recordOf(table, value) {
  const shape = Object.hasOwn(RECORDS, table) ? RECORDS[table] : null;
  return shape === null || value.length === 0 ? null : message(value, shape);
}

/** Returns a value in one line; `size` is how many bytes it has. */
export function preview(table, base64) {
  // Four characters of base64 are three bytes; a record is read whole.
  const isRecord = Object.hasOwn(RECORDS, table) && base64.length < 8192;
  const value = decode(isRecord ? base64 : base64.slice(0, PREVIEW_CHARS * 4));
  const record = isRecord ? recordOf(table, value) : null;
  if (record !== null) return oneLine(record);
  let decoded = text(value);
  for (let cut = 1; decoded === null && cut < 4 && base64.length > PREVIEW_CHARS * 4; cut += 1) {
    decoded = text(value.subarray(0, value.length - cut));
  }
  if (!isPrintable(decoded)) return hexOf(value.subarray(0, 40));
  return [...decoded].slice(0, PREVIEW_CHARS).join("");
}

/** Returns how many bytes a value in base64 has. */
export function sizeOf(base64) {
  const padding = base64.endsWith("==") ? 2 : base64.endsWith("=") ? 1 : 0;
  return (base64.length / 4) * 3 - padding;
}

const oneLine = (fields) =>
  fields.map(([title, it]) => `${title} ${Array.isArray(it) ? `(${oneLine(it)})` : it}`).join(", ").slice(0, 4 * PREVIEW_CHARS);

function list(fields) {
  const items = fields.map(([title, it]) => [
    h("dt", {}, title),
    h("dd", {}, Array.isArray(it) ? list(it) : name(it)),
  ]);
  return h("dl", { class: "record" }, ...items.flat());
}

/** Makes what the detail of an entry shows of its value. */
export function view(table, base64) {
  const value = decode(base64);
  const record = recordOf(table, value);
  const decoded = text(value);
  const parts = [];
  if (record !== null) parts.push(h("h3", {}, "Record"), list(record));
  else if (value.length > 0 && isPrintable(decoded)) {
    parts.push(h("h3", {}, "Text"), h("pre", { class: "text", dir: "auto", tabindex: "0", "aria-label": "Value as text" }, plainLines(decoded)));
  }
  const cut = value.length > HEX_BYTES_MAX ? `, the first ${bytes(HEX_BYTES_MAX)}` : "";
  parts.push(h("h3", {}, `Bytes${cut}`));
  parts.push(
    value.length === 0
      ? h("p", { class: "empty" }, "The value is empty.")
      : h("pre", { class: "hex", tabindex: "0", "aria-label": "Value in hex" }, hexDump(value)),
  );
  return parts;
}
