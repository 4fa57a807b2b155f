// Changes as they happen; after a broken connection those that were missed.

import { Problem, explain, messages } from "./api.js";
import { byId, clock, count, h, row, setText, tellTable } from "./dom.js";
import { keyOf, parse, percent, showKey, toHex, valueOf, toText } from "./bytes.js";

const KEPT = 200;
const SHOWN = 120;
const BACKOFF_MS = 10_000;

let source = null;
let prefix = null;
// Everything up to this revision was seen; null: begin with what happens from now on.
let seen = null;
let failures = 0;
let timer = 0;

// Goes on at once, as somebody else.
export function again() {
  if (source === null) return;
  clearTimeout(timer);
  connect();
}

export function begin() {
  tellTable(byId("watch-table"));
  byId("watch-form").addEventListener("submit", (event) => {
    event.preventDefault();
    start();
  });
  byId("watch-stop").addEventListener("click", () => {
    stop();
    byId("watch-start").focus();
  });
  byId("watch-clear").addEventListener("click", () => byId("watch-table").tBodies[0].replaceChildren());
}

function say(text) {
  setText(byId("watch-state"), text);
}

function start() {
  const given = parse(byId("watch-prefix").value, byId("watch-as").value);
  if (given === null) {
    say("The prefix is not hex.");
    return;
  }
  stop();
  [prefix, seen, failures] = [given, null, 0];
  byId("watch-stop").disabled = false;
  say("Connecting.");
  connect();
}

function stop() {
  clearTimeout(timer);
  source?.abort();
  source = null;
  byId("watch-stop").disabled = true;
  say("Not watching.");
}

function target() {
  const from = seen === null ? "" : `&from_revision=${seen + 1}`;
  return `/v1/watch?prefix=${percent(prefix)}${from}`;
}

async function connect() {
  source?.abort();
  const mine = new AbortController();
  source = mine;
  let why = "";
  try {
    for await (const { event, data } of messages(target(), mine.signal)) {
      if (mine !== source) return;
      if (event === "progress") reached(data.revision);
      else if (event === "change") {
        add(data.events.map(line));
        reached(data.revision);
      } else if (event === "draining") say("The node shuts down; going on when it is back.");
      else if (event === "lagged") return gap(data.oldest_revision);
    }
  } catch (error) {
    if (mine !== source) return;
    if (error instanceof Problem && error.status === 410) return gap(error.body.oldest_revision);
    why = error instanceof Problem ? explain(error) : "";
  }
  if (mine !== source) return;
  failures += 1;
  const wait = Math.min(BACKOFF_MS, 1000 * 2 ** (failures - 1));
  const from = seen === null ? "" : ` Going on after revision ${count(seen)}.`;
  say(`Not connected; trying again in ${Math.round(wait / 1000)} s.${from} ${why}`);
  clearTimeout(timer);
  timer = setTimeout(connect, wait);
}

function reached(revision) {
  seen = revision;
  failures = 0;
  const what = prefix.length ? `keys that begin with ${showKey(prefix)}` : "all keys";
  say(`Watching ${what}, at revision ${count(seen)}.`);
}

// Changes were lost to us: it is said, and what is still known goes on.
function gap(oldest) {
  const text = `Changes up to revision ${count(oldest)} are no longer known.`;
  const table = byId("watch-table");
  add([row(table, [clock(Date.now()), count(oldest), "gap", "", text, ""])]);
  seen = oldest;
  connect();
}

function line(event) {
  const table = byId("watch-table");
  const key = h("code", {}, showKey(keyOf(event)));
  const node = row(table, [
    clock(Date.now()), count(event.mod_revision), event.type, key, shortly(event), event.reason,
  ]);
  node.classList.add(event.type);
  return node;
}

function shortly(event) {
  const bytes = valueOf(event);
  if (bytes === null) return "";
  const part = bytes.subarray(0, SHOWN);
  const text = event.encoding === "base64" ? `0x${toHex(part)}` : (toText(part) ?? event.value.slice(0, SHOWN / 4));
  return h("code", {}, bytes.length > SHOWN ? `${text}\u2026` : text);
}

function add(lines) {
  const body = byId("watch-table").tBodies[0];
  body.prepend(...lines.reverse());
  while (body.rows.length > KEPT) body.rows[body.rows.length - 1].remove();
}
