// Asks the service. What is only busy is asked again when it said, what wants a key waits for one, and everything else
// that is no answer becomes a Failure, whose message is a sentence for a person.

const KEY = "distft.demo.key";
const TRIES = 4;
const PASSING = new Set([429, 502, 503, 504]); // what another try, a little later, may change
const LONGEST_PAUSE_S = 15;

export class Failure extends Error {}

const page = { waits: () => {}, wantsKey: () => {}, answered: () => {} };
const waiting = new Map(); // a request that waits → the sentence that says so
let key = stored();
let nextKey = null; // the promise of a key, while the form is open
let keyGiven = null;

/** Tells who shows things: `waits(sentence)`, `wantsKey(wasRefused)`, `answered(hasKey)`. */
export function listen(handlers) {
  Object.assign(page, handlers);
}

export function giveKey(text) {
  if (!/^[\x21-\x7e]+$/.test(text)) {
    return false; // no header can carry it
  }
  store(text);
  keyGiven?.();
  return true;
}

export function leaveKey() {
  store("");
}

/**
 * The JSON that the service answers. Throws Failure, or AbortError if `signal` was aborted meanwhile.
 * A request is sent more than once only if it was not answered; none of this page's does harm the second time.
 */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const me = Symbol(path);
  try {
    for (let attempt = 1; ; attempt += 1) {
      const asked = key;
      const response = await send(path, method, body, signal, asked);
      if (response?.status === 401) {
        await anotherKey(asked);
        attempt = 0;
      } else if (response?.ok) {
        page.answered(key !== "");
        return await read(response);
      } else if (attempt === TRIES || (response && !PASSING.has(response.status))) {
        throw new Failure(response ? await sentence(response) : "The service cannot be reached.");
      } else {
        await pause(me, response, attempt, signal);
      }
    }
  } finally {
    wait(me, "");
  }
}

async function send(path, method, body, signal, asked) {
  const headers = {};
  if (asked) {
    headers.authorization = `Bearer ${asked}`;
  }
  if (body !== undefined) {
    headers["content-type"] = "application/json";
  }
  const content = body === undefined ? undefined : JSON.stringify(body);
  try {
    return await fetch(path, { method, headers, body: content, signal, redirect: "error", credentials: "omit" });
  } catch (error) {
    if (signal?.aborted) {
      throw error;
    }
    return null; // there was no answer at all
  }
}

async function read(response) {
  try {
    return await response.json();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure("The service’s answer broke off.");
  }
}

async function pause(me, response, attempt, signal) {
  const told = Number(response?.headers.get("retry-after")) || 2 ** (attempt - 1);
  const seconds = Math.min(told, LONGEST_PAUSE_S);
  const why = {
    429: "This key has asked more often than it may",
    503: "The service cannot answer at the moment",
  }[response?.status] ?? "The service cannot be reached";
  wait(me, `${why}. Trying again in ${seconds} s (${attempt} of ${TRIES - 1}).`);
  await new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

function wait(me, text) {
  waiting.delete(me);
  if (text) {
    waiting.set(me, text);
  }
  page.waits([...waiting.values()].at(-1) ?? "");
}

/** What a problem says, with the first of its fields. */
async function sentence(response) {
  const problem = await response.json().catch(() => null);
  const [first] = problem?.errors ?? [];
  const detail = problem?.detail ?? `The service answered with status ${response.status}.`;
  return first ? `${detail} ${first.field}: ${first.message}` : detail;
}

async function anotherKey(refused) {
  if (refused !== key) {
    return; // while this request was on its way, somebody has typed another one
  }
  if (!nextKey) {
    nextKey = new Promise((resolve) => {
      keyGiven = resolve;
    }).then(() => {
      nextKey = null;
    });
    page.wantsKey(refused !== "");
  }
  await nextKey;
}

// A browser may be told to keep nothing for a page: then the key lasts as long as the page.
function stored() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

function store(text) {
  key = text;
  try {
    sessionStorage.setItem(KEY, text);
    if (!text) {
      sessionStorage.removeItem(KEY);
    }
  } catch {
    // It is in `key`.
  }
}
