// The demo shop: what the visitor does, and what is shown of it.
//
// The page keeps the visitor's events and sends all of them with each request, so that nothing is kept anywhere; with
// "remember me" it sends each event to the service instead, and then only the user's id.

import { ask, Failure, giveKey, leaveKey, listen } from "./asking.js";
import {
  card, detail, filter, foundText, legendOf, newsOf, pastEvent, recommendation, titleOf,
} from "./showing.js";
import { count, deeds as deedsOf, done } from "./words.js";

const LISTED = 8; // recommendations
const MOST_EVENTS = 100; // as many as the service explains
const NARROW = matchMedia("(max-width: 46rem)");
const TOAST_MS = 4000;

const at = (id) => document.getElementById(id);

const shop = { q: "", filters: new Map(), offset: 0 };
let model = null;
let deeds = deedsOf([]);
let events = []; // oldest first, as the service takes them
let user = null; // whose events the service keeps, while it remembers
let unkept = []; // events that the service is still to be told of: a second time does no harm
let placesBefore = null; // item id → place in the list before
let latest = null; // the answer that is shown
let opener = null; // the button that opened the item that is shown alone
let lastTime = 0;
let toastTimer = 0;
const known = new Map(); // item id → item, as the service told it
const failed = new Map(); // kind of step → the step and a sentence
const turns = { items: new AbortController(), list: new AbortController() };

const unknown = (id) => ({ item_id: id, features: {} });
const titleById = (id) => (known.has(id) ? titleOf(known.get(id)) : id);

// -- what the service is asked ------------------------------------------------------------------------------------

/** Runs a step of a kind; one that fails is told with a button, and stays told until one of its kind succeeds. */
async function attempt(kind, step) {
  try {
    await step();
    failed.delete(kind);
  } catch (error) {
    if (error.name === "AbortError") {
      return; // a newer request took its place
    }
    const text = error instanceof Failure ? error.message : "This page failed. Please load it again.";
    failed.set(kind, { step, text });
    at("list").removeAttribute("aria-busy");
    if (!(error instanceof Failure)) {
      throw error;
    }
  } finally {
    at("failure").hidden = failed.size === 0;
    at("failure-text").textContent = [...failed.values()].at(-1)?.text ?? "";
  }
}

/** A signal that the next request of the same kind aborts. */
function turn(kind) {
  turns[kind].abort();
  turns[kind] = new AbortController();
  return turns[kind].signal;
}

async function meetModel() {
  model = await ask("v1/model");
  deeds = deedsOf(model.events);
  events = events.filter((event) => model.events.includes(event.event));
  document.title = `${model.name}: demo shop`;
  at("about").textContent =
    `${model.name}: ${count(model.num_items, "item")}, learnt from ${model.events.map((one) => one.replaceAll("_", " ")).join(", ")}`;
  at("version").textContent = `· model ${model.model_version}`;
  showRemembering();
}

async function loadItems() {
  const limit = NARROW.matches ? 12 : 24;
  const wanted = new URLSearchParams({ offset: shop.offset, limit, values: 100 });
  if (shop.q) {
    wanted.set("q", shop.q);
  }
  for (const [feature, value] of shop.filters) {
    wanted.append("filter", `${feature}:${value}`);
  }
  const page = await ask(`v1/items?${wanted}`, { signal: turn("items") });
  page.items.forEach((item) => known.set(item.item_id, item));
  showItems(page, limit);
}

/** Tells the service what it is to remember, asks for the list, and shows it. */
async function recommend() {
  at("list").setAttribute("aria-busy", "true");
  const signal = turn("list");
  if (user !== null && unkept.length > 0) {
    const sent = [...unkept];
    await ask("v1/events", { method: "POST", body: { user_id: user, events: sent }, signal });
    unkept = unkept.filter((event) => !sent.includes(event));
  }
  const k = Math.min(LISTED, model.max_k);
  const who = user === null ? { history: events } : { user_id: user };
  const answer = await ask("v1/recommend", { method: "POST", body: { ...who, k, explain: true }, signal });
  if (answer.model_version !== model.model_version) {
    await meetModel(); // it was exchanged while somebody looked at the old one
    await loadItems();
  }
  await learn(answer, signal);
  showList(answer);
}

/** Asks for what is to be shown of items that no page of the shop has shown yet. */
async function learn(answer, signal) {
  const reasons = answer.items.flatMap((one) => one.because ?? []);
  const ids = [...answer.items, ...reasons].map((one) => one.item_id).filter((id) => id && !known.has(id));
  const wanted = [...new Set(ids)];
  if (wanted.length === 0) {
    return;
  }
  const asked = new URLSearchParams([...wanted.map((id) => ["item_id", id]), ["limit", 100]]);
  try {
    const page = await ask(`v1/items?${asked}`, { signal });
    wanted.forEach((id) => known.set(id, unknown(id))); // of some there is nothing to tell
    page.items.forEach((item) => known.set(item.item_id, item));
  } catch (error) {
    if (!(error instanceof Failure)) {
      throw error; // a list of ids is better than none
    }
  }
}

// -- what the visitor does ----------------------------------------------------------------------------------------

function act(deed) {
  lastTime = Math.max(Date.now(), lastTime + 1); // the service tells events apart by their time
  const event = { ...deed, timestamp: lastTime };
  events = [...events, event].slice(-MOST_EVENTS);
  at("forgotten").textContent = "";
  showHistory();
  const told = `${done(event, titleById)}.`;
  toast(told);
  if (user !== null) {
    unkept.push(event);
  }
  attempt("list", async () => {
    await recommend();
    toast(`${told} For you: ${at("news").textContent}`);
  });
}

function remove(event) {
  const place = events.indexOf(event);
  events = events.filter((one) => one !== event);
  showHistory();
  const buttons = at("events").querySelectorAll("button");
  (buttons[Math.min(events.length - place, buttons.length - 1)] ?? at("history-title")).focus();
  attempt("list", recommend);
}

function search(q) {
  shop.q = q;
  shop.offset = 0;
  attempt("items", loadItems);
  if (q && deeds.search) {
    act({ event: deeds.search, query: q });
  }
}

function narrow(feature, value) {
  if (value) {
    shop.filters.set(feature, value);
  } else {
    shop.filters.delete(feature);
  }
  shop.offset = 0;
  attempt("items", loadItems);
}

function open(item, button) {
  opener = button;
  const close = () => {
    at("detail").hidden = true;
    (opener?.isConnected ? opener : at("shop-title")).focus();
  };
  const chosen = (feature, value) => {
    at("detail").hidden = true;
    narrow(feature, value);
    at("shop-title").focus();
  };
  at("detail").replaceChildren(...detail(item, deeds, { act, narrow: chosen, close }).filter(Boolean));
  at("detail").onkeydown = (key) => {
    if (key.key === "Escape") {
      close();
    }
  };
  at("detail").hidden = false;
  at("detail-title").focus();
  if (deeds.look) {
    act({ event: deeds.look, item_id: item.item_id });
  }
}

function turnPage(by) {
  shop.offset = Math.max(0, shop.offset + by);
  attempt("items", async () => {
    await loadItems();
    at("shop-title").focus();
  });
}

async function remember(wanted) {
  const id = at("user").value;
  const wrong = wanted && (id === "" ? "Enter a user id first." : /^\.{1,2}$/.test(id) && "No address can end so.");
  if (wrong) {
    at("remember").checked = false;
    at("forgotten").textContent = wrong;
    at("user").focus();
    return;
  }
  user = wanted ? id : null;
  at("forgotten").textContent = "";
  showRemembering();
  showHistory();
  unkept = wanted ? [...events] : [];
  await attempt("list", recommend);
}

async function forget() {
  const id = user;
  turn("list"); // nothing of the user is sent any more
  await attempt("forget", async () => {
    const { forgotten_events } = await ask(`v1/users/${encodeURIComponent(id)}`, { method: "DELETE" });
    user = null;
    events = [];
    unkept = [];
    at("user").value = newUser();
    at("forgotten").textContent = `${count(forgotten_events, "event")} of ${id} forgotten.`;
    showRemembering();
    showHistory();
    at("history-title").focus();
  });
  await attempt("list", recommend);
}

// -- what is shown ------------------------------------------------------------------------------------------------

/** Replaces children; what had the focus has it again, or `otherwise` gets it where that is gone. */
function replace(parent, children, otherwise) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  parent.replaceChildren(...children);
  if (focused !== undefined) {
    const again = [...parent.querySelectorAll("[data-focus]")].find((one) => one.dataset.focus === focused);
    (again ?? otherwise).focus();
  }
}

function showItems(page, limit) {
  const filters = Object.entries(page.values).map(([feature, values]) =>
    filter(feature, values, shop.filters.get(feature), (value) => narrow(feature, value)),
  );
  replace(at("filters"), filters, at("shop-title"));
  at("filters").hidden = filters.length === 0;
  replace(at("items"), page.items.map((item) => card(item, deeds, open, act)), at("shop-title"));
  at("found").textContent = foundText(page, shop.offset, page.items.length, shop.q);
  at("everything").hidden = !shop.q && shop.filters.size === 0;
  const pages = Math.max(1, Math.ceil(page.num_found / limit));
  at("page").textContent = `Page ${Math.floor(shop.offset / limit) + 1} of ${pages}`;
  at("previous").disabled = shop.offset === 0;
  at("next").disabled = shop.offset + limit >= page.num_found;
  at("previous").onclick = () => turnPage(-limit);
  at("next").onclick = () => turnPage(limit);
}

function showList(answer) {
  const before = latest === null ? null : placesBefore;
  const effects = answer.items.flatMap((one) => one.because ?? []).map((reason) => Math.abs(reason.effect));
  const shared = { before, source: answer.source, strongest: Math.max(0, ...effects) };
  const shown = answer.items.map((one, place) =>
    recommendation(one, { ...shared, item: known.get(one.item_id) ?? unknown(one.item_id), place }, { open, titleById }),
  );
  replace(at("list"), shown, at("list-title"));
  at("list").removeAttribute("aria-busy");
  at("news").textContent = newsOf(answer, before, titleById);
  at("legend").textContent = legendOf(answer, model.target_events.join(" or "));
  placesBefore = new Map(answer.items.map((one, place) => [one.item_id, place]));
  latest = answer;
  showHistory();
}

function showHistory() {
  const free = user === null;
  const told = events.map((event) => pastEvent(event, titleById, free && remove)).reverse();
  replace(at("events"), told, at("history-title"));
  at("reset").hidden = !free || events.length === 0;
  if (free) {
    at("kept").textContent = events.length === 0 ? "Open, search or buy something: it shows up here." : "";
  } else {
    at("kept").textContent =
      `The service keeps the history of ${user}, all of it or nothing. This is what this page added:`;
  }
}

function showRemembering() {
  const can = model.keeps_histories;
  at("remembering").disabled = !can;
  at("remember").checked = user !== null;
  at("user").readOnly = user !== null;
  at("forget").hidden = user === null;
  at("remember-text").textContent = can
    ? "The service keeps what you do under this id, and recommends from what it has kept. Off, it stays in this page."
    : "This service keeps no histories (serve.history is none): what you do stays in this page.";
}

function toast(text) {
  at("toast").textContent = text;
  at("toast").classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => at("toast").classList.remove("shown"), TOAST_MS);
}

const newUser = () => `demo-${[...crypto.getRandomValues(new Uint8Array(6))].map((one) => one.toString(36)).join("")}`;

// -- the start ----------------------------------------------------------------------------------------------------

listen({
  waits(text) {
    at("waiting").textContent = text;
    at("waiting").hidden = text === "";
  },
  wantsKey(wasRefused) {
    at("key-wrong").textContent = wasRefused ? "The service does not accept this key." : "";
    at("key-form").hidden = false;
    at("main").hidden = true;
    at("key").value = "";
    at("key").focus();
  },
  answered(hasKey) {
    at("leave-key").hidden = !hasKey;
    if (!at("key-form").hidden) {
      at("key-form").hidden = true;
      at("main").hidden = model === null;
    }
  },
});

function onSubmit(form, step) {
  at(form).addEventListener("submit", (event) => {
    event.preventDefault();
    step();
  });
}

onSubmit("key-form", () => {
  if (!giveKey(at("key").value.trim())) {
    at("key-wrong").textContent = "A key has only letters, digits and signs of ASCII.";
  }
});
onSubmit("search", () => search(at("q").value.trim()));
at("q").addEventListener("search", () => {
  if (at("q").value === "" && shop.q !== "") {
    search(""); // the cross that browsers draw in the field
  }
});
at("everything").addEventListener("click", () => {
  at("q").value = "";
  shop.filters.clear();
  search("");
  at("shop-title").focus();
});
at("reset").addEventListener("click", () => {
  events = [];
  showHistory();
  at("history-title").focus();
  attempt("list", recommend);
});
at("leave-key").addEventListener("click", () => {
  leaveKey();
  location.reload();
});
at("remember").addEventListener("change", () => remember(at("remember").checked));
at("forget").addEventListener("click", forget);
at("again").addEventListener("click", () => [...failed].forEach(([kind, { step }]) => attempt(kind, step)));
at("user").value = newUser();

attempt("start", async () => {
  await meetModel();
  at("main").hidden = false;
  showHistory();
  await loadItems();
  await recommend();
});
