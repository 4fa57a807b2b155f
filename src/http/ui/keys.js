// The list of keys and folders, page by page, and how to move in it.

import { explain, json } from "./api.js";
import { announce, button, byId, count, h, setText, size } from "./dom.js";
import { fromBase64, fromText, keyOf, parse, percent, showKey, startsWith, toHex, toText } from "./bytes.js";
import * as value from "./value.js";

const PAGE = 100;

// `cursors` leads to this page: the last one is its own, null the first page's.
const place = { prefix: fromText(""), delimiter: fromText("/"), cursors: [null], next: null };
let entries = [];
let active = -1;
let asked = 0;
let failed = false;

export function begin() {
  byId("keys-form").addEventListener("submit", (event) => {
    event.preventDefault();
    go();
  });
  byId("keys-new").addEventListener("click", () => value.create(place.prefix));
  byId("keys-back").addEventListener("click", () => turn(-1));
  byId("keys-next").addEventListener("click", () => turn(1));
  byId("keys-list").addEventListener("keydown", onKey);
  byId("keys-list").addEventListener("click", onClick);
  value.begin({ changed: () => list() });
  list();
}

// The node answers again.
export function again() {
  if (failed) list();
}

// To what the fields say.
function go() {
  const prefix = parse(byId("keys-prefix").value, byId("keys-as").value);
  if (prefix === null) {
    setText(byId("keys-state"), "The prefix is not hex.");
    return;
  }
  Object.assign(place, { prefix, delimiter: fromText(byId("keys-delimiter").value), cursors: [null] });
  list();
}

function goTo(prefix) {
  const text = toText(prefix);
  byId("keys-as").value = text === null ? "hex" : "text";
  byId("keys-prefix").value = text ?? toHex(prefix);
  go();
}

function turn(step) {
  if (step > 0 && place.next !== null) place.cursors.push(place.next);
  if (step < 0 && place.cursors.length > 1) place.cursors.pop();
  list();
}

async function list() {
  const mine = (asked += 1);
  const cursor = place.cursors[place.cursors.length - 1];
  let query = `keys_only=true&limit=${PAGE}&prefix=${percent(place.prefix)}`;
  if (place.delimiter.length) query += `&delimiter=${percent(place.delimiter)}`;
  if (cursor !== null) query += `&cursor=${encodeURIComponent(cursor)}`;
  try {
    const page = await json(`/v1/keys?${query}`);
    // What was asked for later counts.
    if (mine !== asked) return;
    failed = false;
    show(page);
  } catch (error) {
    if (mine !== asked) return;
    if (error.status === 410 && cursor !== null) {
      // That state is forgotten: the beginning as it is now.
      place.cursors = [null];
      list();
      return;
    }
    failed = true;
    setText(byId("keys-state"), explain(error));
  }
}

// A folder comes as text, or in base64 when it is none; nothing says which.
function folder(text) {
  const plain = fromText(text);
  if (startsWith(plain, place.prefix) && text.endsWith(toText(place.delimiter) ?? "")) return plain;
  return fromBase64(text) ?? plain;
}

function show(page) {
  const kept = active >= 0 && entries[active] ? toHex(entries[active].key) : null;
  const folders = page.prefixes.map((text) => ({ key: folder(text), isFolder: true }));
  entries = [...folders, ...page.items.map((item) => ({ key: keyOf(item), item, isFolder: false }))];
  place.next = page.next;
  const options = entries.map((entry, at) => option(entry, at));
  byId("keys-list").replaceChildren(...options);
  if (!entries.length) {
    const text = "No keys here.";
    byId("keys-list").append(h("li", { role: "option", "aria-disabled": "true", className: "note" }, text));
  }
  active = entries.length ? Math.max(0, entries.findIndex((entry) => toHex(entry.key) === kept)) : -1;
  move(active, false);
  byId("keys-back").disabled = place.cursors.length < 2;
  byId("keys-next").disabled = page.next === null;
  const number = place.cursors.length > 1 || page.more ? `page ${place.cursors.length}, ` : "";
  const text = `${count(folders.length)} folders, ${count(page.items.length)} keys; ${number}revision ${count(page.revision)}`;
  setText(byId("keys-state"), text);
  path();
  opened(value.current());
}

function option(entry, at) {
  const name = showKey(entry.key.subarray(place.prefix.length)) || showKey(entry.key);
  const node = h("li", { role: "option", id: `entry-${at}`, "aria-selected": "false" });
  node.dataset.at = at;
  node.dataset.key = toHex(entry.key);
  node.append(h("span", { className: "kind", "aria-hidden": "true" }, entry.isFolder ? "\u25b8" : ""));
  node.append(h("span", { className: "name" }, name));
  node.append(h("span", { className: "note" }, what(entry)));
  return node;
}

function what(entry) {
  const as = toText(entry.key) === null ? "hex, " : "";
  return as + (entry.isFolder ? "folder" : size(entry.item.size));
}

// Where we are, each folder above as a button.
function path() {
  const parts = [button("all keys", () => goTo(fromText("")), "plain")];
  const { prefix, delimiter } = place;
  let from = 0;
  for (let at = 0; delimiter.length && at + delimiter.length <= prefix.length; at += 1) {
    if (at < from || !startsWith(prefix.subarray(at), delimiter)) continue;
    const end = at + delimiter.length;
    const part = prefix.subarray(from, end);
    parts.push(button(showKey(part), () => goTo(prefix.slice(0, end)), "plain"));
    from = end;
  }
  byId("keys-path").replaceChildren(...parts);
}

function up() {
  const { prefix, delimiter } = place;
  if (!prefix.length) return;
  let end = 0;
  for (let at = 0; delimiter.length && at + delimiter.length < prefix.length; at += 1) {
    if (startsWith(prefix.subarray(at), delimiter)) end = at + delimiter.length;
  }
  goTo(prefix.slice(0, end));
}

function move(to, scroll = true) {
  const nodes = byId("keys-list").children;
  nodes[active]?.classList.remove("active");
  active = entries.length ? Math.min(entries.length - 1, Math.max(0, to)) : -1;
  if (active < 0) {
    byId("keys-list").removeAttribute("aria-activedescendant");
    return;
  }
  nodes[active].classList.add("active");
  byId("keys-list").setAttribute("aria-activedescendant", nodes[active].id);
  if (scroll) nodes[active].scrollIntoView({ block: "nearest" });
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  const isFolder = entries[active]?.isFolder;
  if (event.key in steps) move(active + steps[event.key]);
  else if (event.key === "Enter" || event.key === " ") open(active);
  else if (event.key === "ArrowRight" && isFolder) open(active);
  else if (event.key === "ArrowLeft" || event.key === "Backspace") up();
  else return;
  event.preventDefault();
}

function onClick(event) {
  const node = event.target.closest("[data-at]");
  if (!node) return;
  move(Number(node.dataset.at));
  open(active);
}

async function open(at) {
  const entry = entries[at];
  if (!entry) return;
  if (entry.isFolder) {
    active = -1;
    goTo(entry.key);
    announce(`Folder ${showKey(entry.key)}`);
  } else if (await value.open(entry.key)) {
    opened(entry.key);
  }
}

function opened(key) {
  const hex = key === null ? null : toHex(key);
  for (const node of byId("keys-list").children) {
    if (node.dataset.key !== undefined) node.setAttribute("aria-selected", String(node.dataset.key === hex));
  }
}
