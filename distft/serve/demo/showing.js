// Makes the elements of the page. Whatever comes from the catalogue goes in as text or as the value of an attribute:
// nothing here, and nothing that the page's policy allows, reads a string as HTML.

import { count, doing, done, effectText, featureText, movement, STARS } from "./words.js";

const hues = new Map(); // category → degrees on the circle of colours
const ON_CARD = 3; // more actions than these stand on the page of the item alone

/** An element; attributes that are false or undefined are left out, and so are such children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      made.addEventListener(name, value);
    } else if (value !== false && value !== undefined) {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  made.append(...children.filter((child) => child !== false && child !== undefined));
  return made;
}

/** Texts of strangers: each in the direction that it is written in. */
const name = (tag, text, attributes = {}) => element(tag, { dir: "auto", ...attributes }, text);

export const titleOf = (item) => item.title ?? item.item_id;

/** A coloured field with the item's first letters: the same for all items of a category. */
function tile(item) {
  const [first] = Object.values(item.features).filter(Array.isArray);
  const made = element("div", { class: "tile", "aria-hidden": "true" }, initials(titleOf(item)));
  made.style.setProperty("--hue", String(hue(first?.[0] ?? "")));
  return made;
}

function initials(title) {
  const words = title.match(/[\p{L}\p{N}]+/gu) ?? ["·"];
  const letters = words.length > 1 ? words.slice(0, 2).map((word) => [...word][0]) : [...words[0]].slice(0, 2);
  return letters.join("").toUpperCase();
}

/** A colour for each category, in the order in which they turn up: the golden angle keeps any number of them apart. */
function hue(category) {
  if (!hues.has(category)) {
    hues.set(category, Math.round(175 + hues.size * 137.5) % 360);
  }
  return hues.get(category);
}

function actions(item, names, act, most = names.length) {
  return names.slice(0, most).map((event) =>
    element(
      "button",
      {
        type: "button",
        class: event === "purchase" ? "main" : undefined,
        "aria-label": `${doing(event)}: ${titleOf(item)}`,
        "data-focus": `${event} ${item.item_id}`,
        click: () => act({ event, item_id: item.item_id }),
      },
      doing(event),
    ),
  );
}

function facts(item) {
  const entries = Object.entries(item.features);
  const words = entries.filter(([, value]) => Array.isArray(value)).map(([, value]) => value.join(", "));
  const numbers = entries.filter(([, value]) => typeof value === "number");
  return { words: words.join(" · "), numbers: numbers.map(([key, value]) => `${key} ${featureText(key, value)}`) };
}

/** One item among others. `deeds` are the model's, `open(item, button)` shows it alone, `act(event)` does something. */
export function card(item, deeds, open, act) {
  const { words, numbers } = facts(item);
  const button = name("button", titleOf(item), { type: "button", class: "open" });
  button.addEventListener("click", () => open(item, button));
  return element(
    "li",
    { class: "card", "data-item": item.item_id },
    tile(item),
    element("h3", {}, button),
    words && name("p", words, { class: "small" }),
    numbers.length > 0 && name("p", numbers.join(" · "), { class: "numbers" }),
    deeds.actions.length > 0 && element("div", { class: "actions" }, ...actions(item, deeds.actions, act, ON_CARD)),
  );
}

/** The children of the page of one item. `narrow(name, value)` filters the shop by one of its categories. */
export function detail(item, deeds, { act, narrow, close }) {
  const rows = Object.entries(item.features).map(([key, value]) =>
    element("div", {}, name("dt", key), element("dd", {}, ...described(key, value, narrow))),
  );
  return [
    tile(item),
    name("h3", titleOf(item), { id: "detail-title", tabindex: "-1" }),
    element("button", { type: "button", class: "quiet close", click: close }, "Close"),
    element("dl", {}, element("div", {}, element("dt", {}, "id"), name("dd", item.item_id)), ...rows),
    element("div", { class: "actions" }, ...actions(item, deeds.actions, act), deeds.rates && stars(item, act)),
  ];
}

function described(key, value, narrow) {
  if (!Array.isArray(value)) {
    return [name("span", featureText(key, value))];
  }
  return value.map((one) =>
    name("button", one, { type: "button", class: "chip", title: `Show all of ${one}`, click: () => narrow(key, one) }),
  );
}

function stars(item, act) {
  const buttons = STARS.map((value) =>
    element(
      "button",
      {
        type: "button",
        "aria-label": `Rate ${value} of ${STARS.length}: ${titleOf(item)}`,
        "data-focus": `rating ${value} ${item.item_id}`,
        click: () => act({ event: "rating", item_id: item.item_id, value }),
      },
      `${value} ★`,
    ),
  );
  return element("span", { class: "stars", role: "group", "aria-label": "Rate" }, ...buttons);
}

/**
 * One recommendation. `about` has its item, its place, where it stood `before` (null: there was no list before), the
 * answer's `source`, and `strongest`, the effect that is drawn as a full bar.
 */
export function recommendation(one, about, { open, titleById }) {
  const { item, place, before, strongest } = about;
  const moved = before === null ? movement(place, place) : movement(place, before.get(item.item_id));
  const button = name("button", titleOf(item), {
    type: "button",
    class: "open",
    "data-focus": `open ${item.item_id}`,
  });
  button.addEventListener("click", () => open(item, button));
  return element(
    "li",
    { "data-item": item.item_id, class: moved.kind },
    element(
      "div",
      { class: "head" },
      button,
      moved.sign !== "" &&
        element("span", { class: `moved ${moved.kind}` }, element("span", { "aria-hidden": "true" }, moved.sign),
          element("span", { class: "unseen" }, moved.said)),
      element("span", { class: "score" }, scoreText(one.score, about)),
    ),
    one.because?.length > 0 &&
      element("ul", { class: "because" }, ...one.because.map((reason) => because(reason, strongest, titleById))),
  );
}

function scoreText(score, { source }) {
  return source === "popularity" ? `${(100 * score).toFixed(2)}%` : `score ${score.toFixed(2)}`;
}

function because(reason, strongest, titleById) {
  const against = reason.effect < 0;
  const bar = element("span", { class: against ? "bar against" : "bar", "aria-hidden": "true" });
  bar.style.setProperty("--share", String(Math.abs(reason.effect) / (strongest || 1)));
  return element(
    "li",
    {},
    element("span", { class: "unseen" }, against ? "in spite of: " : "because of: "),
    name("span", done(reason, titleById), { class: "why" }),
    bar,
    element("span", { class: "effect" }, effectText(reason.effect)),
  );
}

/** One event of the history; without `remove` it stays. */
export function pastEvent(event, titleById, remove) {
  const text = done(event, titleById);
  return element(
    "li",
    {},
    name("span", text, { class: "deed" }),
    remove &&
      element(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": `Remove: ${text}`,
          "data-focus": `remove ${event.timestamp}`,
          click: () => remove(event),
        },
        "Remove",
      ),
  );
}

/** A choice among the values of a feature, the chosen one among them also where nothing is left of it. */
export function filter(feature, values, chosen, choose) {
  const known = values.some((one) => one.value === chosen);
  const options = values.map(({ value, num_items }) =>
    element("option", { value, selected: value === chosen }, `${value} (${num_items})`),
  );
  const select = element(
    "select",
    { change: () => choose(select.value), "data-focus": `filter ${feature}` },
    element("option", { value: "" }, "all"),
    chosen && !known && element("option", { value: chosen, selected: true }, `${chosen} (0)`),
    ...options,
  );
  return element("label", {}, name("span", feature), select);
}

/** What the figures of a list mean. */
export function legendOf(answer, targets) {
  return answer.source === "popularity"
    ? `The figures are each item’s share of all events of the type ${targets}.`
    : "Below each item: what moved its score most. An effect is the score less what it is without that event; the " +
        "longer a bar, the more the event counted.";
}

/** What a new list is like, in a sentence. */
export function newsOf(answer, before, titleById) {
  if (answer.items.length === 0) {
    return "There is nothing left to recommend.";
  }
  if (answer.source === "popularity") {
    return "Nothing is known of you yet: this is what most visitors want.";
  }
  const first = `First: ${titleById(answer.items[0].item_id)}.`;
  if (before === null) {
    return first;
  }
  const moves = answer.items.map((one, place) => movement(place, before.get(one.item_id)).kind);
  const fresh = moves.filter((kind) => kind === "new").length;
  const moved = moves.filter((kind) => kind === "up" || kind === "down").length;
  const told = [fresh > 0 && `${fresh} new`, moved > 0 && `${moved} moved`].filter(Boolean);
  return `${told.length > 0 ? `${told.join(", ")}.` : "The list stays as it was."} ${first}`;
}

export function foundText({ num_found }, offset, shown, q) {
  const what = q ? ` for “${q}”` : "";
  if (shown === 0) {
    return `Nothing was found${what}.`;
  }
  return `${count(num_found, "item")}${what}, ${offset + 1} to ${offset + shown}`;
}
