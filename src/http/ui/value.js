// The key that is open: its value, what is known of it, its past; from here it is edited and deleted.

import { Problem, ask, canBeAsked, explain, getKey, json, keyPath } from "./api.js";
import { hexDump, percent, showKey, toBase64, toText, valueOf } from "./bytes.js";
import { ago, announce, button, byId, confirm, count, h, lifetime, options, row, setText, size, tellTable } from "./dom.js";
import { Editor } from "./editor.js";

// So much of a value is shown.
const SHOWN = 64 * 1024;

let key = null;
let editor = null;
let changed = () => {};
let asked = 0;

export function begin(given) {
  changed = given.changed;
  empty();
  window.addEventListener("beforeunload", (event) => {
    if (editor?.isDirty()) event.preventDefault();
  });
}

// The key that is open, or null.
export function current() {
  return key;
}

function empty() {
  const text = "Choose a key on the left, or make a new one.";
  byId("detail").replaceChildren(h("p", { className: "note" }, text));
}

// What was typed is not thrown away unasked.
async function mayLeave() {
  if (!editor?.isDirty()) return true;
  return confirm("Leave your changes?", "What you have typed is not saved and would be lost.", "Leave");
}

export async function open(wanted) {
  if (!(await mayLeave())) return false;
  editor = null;
  key = wanted;
  await load();
  return true;
}

async function load() {
  const mine = (asked += 1);
  const wanted = key;
  if (!canBeAsked(wanted)) {
    tell("A browser cannot name this key", "Use curl --path-as-is, or a transaction (POST /v1/txn).");
    return;
  }
  try {
    const item = await getKey(wanted);
    if (mine === asked) view(item);
  } catch (error) {
    if (mine !== asked) return;
    const isGone = error instanceof Problem && error.status === 404;
    tell(showKey(wanted), isGone ? "There is no such key any more." : explain(error), isGone);
  }
}

function tell(title, text, hasPast = false) {
  const buttons = h("div", { className: "row" }, button("Reload", load));
  const past = h("div");
  if (hasPast) buttons.append(button("History", () => history(past)));
  byId("detail").replaceChildren(h("h3", {}, title), h("p", { role: "status" }, text), buttons, past);
}

function meta(item) {
  const list = h("dl", { className: "facts", "aria-label": "About this key" });
  const add = (name, text) => list.append(h("div", {}, h("dt", {}, name), h("dd", {}, text)));
  add("Revision", count(item.mod_revision));
  add("Version", count(item.version));
  add("Created at revision", count(item.create_revision));
  add("Size", size(item.size));
  add("Type", item.content_type || "none");
  add("Ends in", item.ttl === null ? "never" : ago(lifetime(item.ttl)));
  add("Lease", item.lease === null ? "none" : String(item.lease));
  return list;
}

function view(item) {
  const bytes = valueOf(item);
  const title = h("h3", { id: "value-title" }, h("code", {}, showKey(key)));
  if (toText(key) === null) title.append(" ", h("span", { className: "tag" }, "hex"));
  const past = h("div");
  const text = h("pre", { id: "value-text", tabIndex: 0, role: "region", "aria-label": "Value" });
  const as = h("select", {}, ...options("text", "hex", "base64"));
  as.value = item.encoding === "base64" ? "hex" : "text";
  const cut = h("p", { className: "note" });
  const show = () => {
    const part = bytes.subarray(0, SHOWN);
    if (as.value === "hex") setText(text, hexDump(part));
    else if (as.value === "base64") setText(text, toBase64(part));
    else setText(text, new TextDecoder("utf-8", { ignoreBOM: true }).decode(part));
    const isText = item.encoding === "utf-8" || as.value !== "text";
    const words = [];
    if (!isText) words.push("These bytes are not UTF-8; some are shown as \ufffd.");
    if (bytes.length > SHOWN) words.push(`The first ${size(SHOWN)} of ${size(bytes.length)}.`);
    if (!bytes.length) words.push("The value is empty.");
    setText(cut, words.join(" "));
  };
  as.addEventListener("change", show);
  show();
  const buttons = h(
    "div", { className: "row" },
    button("Edit", () => edit(item), "main"),
    button("History", () => history(past)),
    button("Reload", load),
    button("Delete", () => remove(item), "danger"),
    h("label", { className: "inline" }, "Show as ", as),
  );
  byId("detail").replaceChildren(title, meta(item), buttons, text, cut, past);
  announce(`${showKey(key)}, ${size(item.size)}, revision ${item.mod_revision}`);
}

function edit(item) {
  write({ key, item });
}

function write(given) {
  const mine = new Editor(byId("detail"), {
    ...given,
    cancelled,
    // Somebody may have gone on to another key while it was saved.
    saved: (written) => (mine === editor ? saved(written) : changed()),
  });
  editor = mine;
}

export async function create(prefix) {
  if (!(await mayLeave())) return;
  asked += 1;
  write({ key: null, item: null, prefix });
}

async function saved(written) {
  editor = null;
  key = written;
  changed();
  await load();
  focusEdit();
}

async function cancelled() {
  if (!(await mayLeave())) return;
  editor = null;
  if (key === null) {
    empty();
    byId("keys-new").focus();
    return;
  }
  await load();
  focusEdit();
}

function focusEdit() {
  byId("detail").querySelector("button.main")?.focus();
}

async function remove(item) {
  const name = showKey(key);
  const text = `${name}, ${size(item.size)}, revision ${item.mod_revision}. It is deleted only if nobody changed it since.`;
  if (!(await confirm("Delete this key?", text, "Delete"))) return;
  try {
    const headers = { "If-Match": `"${item.mod_revision}"` };
    await ask(keyPath(key), { method: "DELETE", headers });
  } catch (error) {
    if (error instanceof Problem && error.status === 412) {
      await load();
      const said = "It was not deleted: somebody changed it. This is what it is now.";
      byId("detail").prepend(h("p", { className: "banner", role: "alert" }, said));
    } else {
      byId("detail").prepend(h("p", { className: "banner", role: "alert" }, `Not known to be deleted. ${explain(error)}`));
    }
    return;
  }
  changed();
  key = null;
  empty();
  byId("detail").prepend(h("p", { role: "status" }, `${name} is deleted.`));
  byId("keys-list").focus();
}

const PAST_COLUMNS = [["Revision", true], ["Change"], ["Because of"], ["Version", true], ["Size", true], ["Value"]];

function history(host) {
  const head = h("tr", {}, ...PAST_COLUMNS.map(([name, isNumber]) =>
    h("th", { scope: "col", className: isNumber ? "number" : "" }, name)));
  const caption = h("caption", { className: "unseen" }, "History of the key, newest first");
  const table = h("table", { className: "stack" }, caption, h("thead", {}, head), h("tbody"));
  tellTable(table);
  const state = h("p", { className: "note", role: "status" });
  const more = button("Older", () => page());
  more.hidden = true;
  host.replaceChildren(h("h4", {}, "History"), table, h("div", { className: "row" }, more), state);
  const of = key;
  let before = null;
  async function page() {
    const from = before === null ? "" : `&before=${before}`;
    try {
      const past = await json(`/v1/history/${percent(of)}?limit=20${from}`);
      table.tBodies[0].append(...past.items.map((item) => change(table, item)));
      before = past.next_before;
      more.hidden = !past.more;
      const since = past.oldest_revision ? `Older changes than revision ${count(past.oldest_revision + 1)} are forgotten.` : "";
      setText(state, past.items.length || before !== null ? since : `Nothing is known of it. ${since}`);
    } catch (error) {
      setText(state, explain(error));
    }
  }
  page();
}

function change(table, item) {
  const bytes = valueOf(item);
  const value = bytes === null ? "" : h("code", {}, shortly(bytes));
  return row(table, [
    count(item.revision), item.type, item.reason, count(item.version),
    item.size === undefined ? "\u2013" : size(item.size), value,
  ]);
}

function shortly(bytes) {
  const text = showKey(bytes.length > 160 ? bytes.subarray(0, 160) : bytes);
  return bytes.length > 160 ? `${text}\u2026` : text;
}

