// The words of the page for what a model knows: event types, features, numbers. No element is made here.

const LOOKS = ["view", "click"]; // the event of somebody who opens an item
const SEARCH = "search";
export const RATING = "rating";
export const STARS = [1, 2, 3, 4, 5];

const DOING = { cart: "Add to cart", purchase: "Buy", order: "Order", rating: "Rate" };
const DONE = {
  view: "Viewed", click: "Clicked", cart: "Put into the cart", purchase: "Bought", order: "Ordered", rating: "Rated",
  search: "Searched for",
};

/** What the page does with the event types of a model: `look` and `search` may be absent. */
export function deeds(names) {
  const look = LOOKS.find((name) => names.includes(name));
  const search = names.includes(SEARCH) ? SEARCH : undefined;
  const rates = names.includes(RATING);
  const actions = names.filter((name) => ![look, search, RATING].includes(name));
  return { look, search, rates, actions };
}

export function doing(name) {
  return Object.hasOwn(DOING, name) ? DOING[name] : readable(name);
}

/** "Viewed red mug": an event of this page, or one that the service tells of. */
export function done(event, titleOf) {
  const word = Object.hasOwn(DONE, event.event) ? DONE[event.event] : `${readable(event.event)}:`;
  const stars = event.event === RATING && event.value !== undefined ? ` ${event.value} of 5:` : "";
  const query = event.query ? `“${event.query}”` : "";
  const item = event.item_id ? titleOf(event.item_id) : "";
  return [word + stars, query, item].filter(Boolean).join(" ");
}

function readable(name) {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

const PLAIN = new Intl.NumberFormat("en", { maximumFractionDigits: 2, useGrouping: false });
const PRICE = new Intl.NumberFormat("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const COUNT = new Intl.NumberFormat("en");

export function featureText(name, value) {
  if (Array.isArray(value)) {
    return value.join(", ");
  }
  return typeof value === "number" ? (name === "price" ? PRICE : PLAIN).format(value) : value;
}

export function count(number, one, many = `${one}s`) {
  return `${COUNT.format(number)} ${number === 1 ? one : many}`;
}

/** With a sign, and as many digits as tell something. */
export function effectText(effect) {
  const digits = Math.abs(effect) < 0.1 ? 3 : 2;
  const text = Math.abs(effect).toFixed(digits);
  return Number(text) === 0 ? text : `${effect < 0 ? "−" : "+"}${text}`;
}

/** Where an item stands now and where it stood: what is said, what is drawn, and the kind of change. */
export function movement(place, before) {
  if (before === undefined) {
    return { kind: "new", sign: "new", said: "new in the list" };
  }
  const by = before - place;
  if (by === 0) {
    return { kind: "same", sign: "", said: "" };
  }
  const said = `${by > 0 ? "up" : "down"} ${count(Math.abs(by), "place")}`;
  return { kind: by > 0 ? "up" : "down", sign: `${by > 0 ? "▲" : "▼"} ${Math.abs(by)}`, said };
}
