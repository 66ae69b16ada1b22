// Asks `/v1/` of the node that this page came from, and reads its stream of events.

const TOKEN = "networkdb-token";
/** How long an answer may take. */
const PATIENCE_MS = 10_000;
/** The server says something at least every 15 seconds. */
const SILENCE_MS = 40_000;
const BACK_OFF_MS = [250, 500, 1000, 2000, 4000, 8000];

/** What is told to the page: set by it. */
export const hooks = {
  /** The node has answered something. */
  answered() {},
  /** The node does not answer. */
  gone() {},
  /** The node wants a token, or another one. */
  unauthorized() {},
};

/** The node answered with a problem. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.detail || problem?.title || `the node answers ${status}`);
    this.status = status;
    this.title = problem?.title || `Status ${status}`;
    this.kind = problem?.type ?? "";
  }
}

/** The node did not answer. */
export class Gone extends Error {}

const storage = () => {
  try {
    return sessionStorage;
  } catch {
    // A browser that keeps nothing asks again after a reload.
    return null;
  }
};

let kept = storage()?.getItem(TOKEN) ?? null;

export const token = {
  get: () => kept,
  set: (text) => {
    kept = text;
    storage()?.setItem(TOKEN, text);
  },
  forget: () => {
    kept = null;
    storage()?.removeItem(TOKEN);
  },
  // What a header can carry.
  isOne: (text) => /^[\x21-\x7e]+$/.test(text),
};

/** Makes the path of names; browsers take `.` and `..` for directories, however they are written. */
export function path(...parts) {
  const encoded = parts.map((part) => {
    if (part === "." || part === "..") throw new Refused(0, { detail: `a browser cannot ask for the name "${part}"` });
    return encodeURIComponent(part);
  });
  return `/v1/${encoded.join("/")}`;
}

const headersWith = (more, bearer = token.get()) => (bearer ? { ...more, Authorization: `Bearer ${bearer}` } : more);

/** Asks with a token whether it is taken. */
export async function isTaken(bearer) {
  const response = await fetch("/v1/node", { headers: headersWith({}, bearer), cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  return response.status !== 401;
}

/** Asks for JSON, which may take `patience` milliseconds. */
export async function get(target, patience = PATIENCE_MS) {
  let response;
  let body = null;
  try {
    response = await fetch(target, { headers: headersWith({}), cache: "no-store", signal: AbortSignal.timeout(patience) });
    body = await response.text();
  } catch (error) {
    hooks.gone();
    throw new Gone(error.message);
  }
  if (response.status === 401) {
    hooks.unauthorized();
    throw new Refused(401, null);
  }
  hooks.answered();
  let json = null;
  try {
    json = JSON.parse(body);
  } catch {
    throw new Refused(response.status, null);
  }
  if (!response.ok) throw new Refused(response.status, json);
  return json;
}

/** Cuts a stream of text into server-sent events. */
export class EventReader {
  #rest = "";
  #event = { name: "", data: [], id: undefined };
  #tell;

  constructor(tell) {
    this.#tell = tell;
  }

  read(text) {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) this.#line(line.endsWith("\r") ? line.slice(0, -1) : line);
  }

  #line(line) {
    if (line === "") {
      const { name, data, id } = this.#event;
      this.#event = { name: "", data: [], id: undefined };
      if (data.length > 0) this.#tell(name, data.join("\n"), id);
      return;
    }
    const colon = line.indexOf(":");
    const [field, rest] = colon < 0 ? [line, ""] : [line.slice(0, colon), line.slice(colon + 1)];
    const value = rest.startsWith(" ") ? rest.slice(1) : rest;
    if (field === "event") this.#event.name = value;
    else if (field === "data") this.#event.data.push(value);
    else if (field === "id") this.#event.id = value;
  }
}

/** Follows a watch, and comes back to it where it was when it breaks. */
export class Stream {
  #target;
  #told;
  #stateOf;
  #lastId = "";
  #stop = null;
  #wake = () => {};

  /** `told` gets name and data of each event, `stateOf` a state and maybe when the next attempt is. */
  constructor(target, told, stateOf) {
    this.#target = target;
    this.#told = told;
    this.#stateOf = stateOf;
  }

  start() {
    if (this.#stop !== null) return;
    this.#stop = new AbortController();
    this.#run(this.#stop.signal);
  }

  stop() {
    if (this.#stop === null) return;
    this.#stop.abort();
    this.#stop = null;
    this.#wake();
    this.#stateOf("stopped");
  }

  /** Tries at once instead of waiting. */
  hurry() {
    this.#wake();
  }

  async #run(stopped) {
    for (let attempt = 0; !stopped.aborted; attempt += 1) {
      this.#stateOf("connecting");
      let isRefused = false;
      try {
        await this.#follow(stopped, () => {
          attempt = 0;
          this.#stateOf("live");
        });
      } catch (error) {
        isRefused = error instanceof Refused;
        if (isRefused && error.status === 401) {
          if (!stopped.aborted) hooks.unauthorized();
          return;
        }
      }
      if (stopped.aborted) return;
      const base = BACK_OFF_MS[Math.min(attempt, BACK_OFF_MS.length - 1)];
      const wait = (isRefused ? Math.max(base, 5000) : base) * (0.75 + Math.random() / 2);
      this.#stateOf("waiting", Date.now() + wait);
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, wait);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  async #follow(stopped, opened) {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), PATIENCE_MS);
    try {
      const headers = headersWith(this.#lastId === "" ? {} : { "Last-Event-ID": this.#lastId });
      const signal = AbortSignal.any([stopped, silence.signal]);
      const response = await fetch(this.#target, { headers, cache: "no-store", signal });
      if (!response.ok) throw new Refused(response.status, await response.json().catch(() => null));
      const reader = new EventReader((name, data, id) => {
        if (id !== undefined) this.#lastId = id;
        this.#told(name, JSON.parse(data));
      });
      const chunks = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let isOpen = false;
      for (;;) {
        const { done, value } = await chunks.read();
        if (done || stopped.aborted) return;
        if (!isOpen) opened();
        isOpen = true;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MS);
        reader.read(value);
      }
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Does something again and again, some time after it was done; sooner when told so. */
export class Poller {
  #task;
  #period;
  #timer = null;
  #isRunning = false;
  #isWanted = false;
  #isOn = false;

  /** A task that takes long is done less often: it may take a fifth of the time. */
  constructor(period, task) {
    this.#period = period;
    this.#task = task;
  }

  start() {
    this.#isOn = true;
    this.now();
  }

  stop() {
    this.#isOn = false;
    clearTimeout(this.#timer);
  }

  now() {
    if (!this.#isOn) return;
    if (this.#isRunning) this.#isWanted = true;
    else this.#run();
  }

  async #run() {
    clearTimeout(this.#timer);
    this.#isRunning = true;
    this.#isWanted = false;
    const start = performance.now();
    try {
      await this.#task();
    } catch (error) {
      // The page has been told of these two; anything else is a mistake of its own.
      if (!(error instanceof Gone || error instanceof Refused)) console.error(error);
    }
    this.#isRunning = false;
    if (!this.#isOn) return;
    const took = performance.now() - start;
    const pause = Math.max(this.#period - took, 4 * took);
    this.#timer = setTimeout(() => this.#run(), this.#isWanted ? Math.min(4 * took, 250) : pause);
  }
}
