// What is looked at, as the part of the address after `#`: `#/n/NETWORK/t/TABLE/e/KEY?p=PREFIX&c=CURSOR`.

/** Writes a place as the end of an address. */
export function toHash({ network, table, key, prefix, cursor }) {
  let hash = "#/";
  if (network) hash += `n/${encodeURIComponent(network)}`;
  if (network && table) hash += `/t/${encodeURIComponent(table)}`;
  if (network && table && key) hash += `/e/${encodeURIComponent(key)}`;
  const query = [];
  if (prefix) query.push(`p=${encodeURIComponent(prefix)}`);
  if (cursor) query.push(`c=${encodeURIComponent(cursor)}`);
  return query.length > 0 ? `${hash}?${query.join("&")}` : hash;
}

/** Reads one; what cannot be read is left out. */
export function fromHash(hash) {
  if (!hash.startsWith("#/")) return {};
  try {
    const [path, query = ""] = hash.slice(2).split("?");
    const parts = path.split("/");
    const after = (mark, at) => (parts[at] === mark && parts[at + 1] ? decodeURIComponent(parts[at + 1]) : undefined);
    const asked = new Map(query.split("&").map((pair) => [pair.slice(0, 1), decodeURIComponent(pair.slice(2))]));
    return {
      network: after("n", 0),
      table: after("t", 2),
      key: after("e", 4),
      prefix: asked.get("p"),
      cursor: asked.get("c"),
    };
  } catch {
    return {};
  }
}
