// Writing a key, so that nothing is lost: what is written replaces only what was read, and when
// somebody else was faster both versions are shown.

import { Problem, ask, canBeAsked, explain, getKey, isUnknown, keyPath } from "./api.js";
import { parse, same, showKey, toBase64, toHex, toText, valueOf } from "./bytes.js";
import { announce, button, count, h, lifetime, options, setText } from "./dom.js";

function text(bytes, as) {
  if (as === "hex") return toHex(bytes).replace(/(.{2})(?=.)/g, "$1 ");
  return as === "base64" ? toBase64(bytes) : toText(bytes);
}

// A text field makes other line ends of some, so not every text can be edited as such.
function isPlain(bytes) {
  const plain = toText(bytes);
  return plain !== null && !plain.includes("\r");
}

// What a key has left, in whole seconds if it has one.
function left(item) {
  if (!item || item.ttl === null) return "";
  const ms = lifetime(item.ttl);
  return ms < 1000 ? item.ttl : `${Math.ceil(ms / 1000)}s`;
}

export class Editor {
  // `item`: what is there, or null for a new key; `key`: null while it has no name.
  constructor(host, { key, item, prefix, saved, cancelled }) {
    Object.assign(this, { key, item, saved });
    this.base = item?.mod_revision ?? null;
    this.bytes = item ? valueOf(item) : new Uint8Array();
    this.busy = false;
    // What was sent of which nobody knows whether it was written.
    this.unsure = new Set();
    this.as = h("select", { id: "edit-as" }, ...options("text", "hex", "base64"));
    this.as.value = this.shown = isPlain(this.bytes) ? "text" : "hex";
    this.area = h("textarea", { id: "edit-value", rows: 10, spellcheck: "false", value: text(this.bytes, this.as.value) });
    this.type = h("input", { id: "edit-type", type: "text", value: item?.content_type ?? "text/plain; charset=utf-8" });
    this.ttl = h("input", { id: "edit-ttl", type: "text", value: left(item), placeholder: "none, or 30s, 5m, 1h" });
    this.name = h("input", { id: "edit-key", type: "text", autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
    this.nameAs = h("select", { id: "edit-key-as" }, ...options("text", "hex"));
    const plain = toText(prefix ?? new Uint8Array());
    this.nameAs.value = plain === null ? "hex" : "text";
    this.name.value = plain ?? toHex(prefix);
    this.first = this.state();
    this.status = h("p", { id: "edit-status", role: "status" });
    this.conflict = h("section", { className: "conflict", "aria-label": "Conflict", hidden: true });
    this.as.addEventListener("change", () => this.convert());
    this.save = h("button", { type: "submit", className: "main" }, item ? "Save" : "Create");
    this.show(host, cancelled);
  }

  show(host, cancelled) {
    const label = (name, field, className = "") => h("label", { className }, name, field);
    const naming = h("div", { className: "row" }, label("Key", this.name, "grow"), label("as", this.nameAs));
    const lease = this.item?.lease ? [h("p", { className: "note" }, `It hangs on lease ${this.item.lease}, and stays so unless you give it a time to live.`)] : [];
    const form = h(
      "form", { className: "editor", on: { submit: (event) => this.submit(event) } },
      ...(this.key === null ? [naming] : []),
      h("div", { className: "row end" }, label("Value as", this.as, "inline")),
      label("Your version", this.area),
      h("div", { className: "row" }, label("Content type", this.type, "grow"), label("Time to live", this.ttl, "grow")),
      ...lease,
      h("div", { className: "row" }, this.save, button("Cancel", cancelled)),
      this.status,
      this.conflict,
    );
    const title = this.key === null ? "New key" : ["Edit ", h("code", {}, showKey(this.key))];
    host.replaceChildren(h("h3", {}, ...[title].flat()), form);
    (this.key === null ? this.name : this.area).focus();
  }

  state() {
    return JSON.stringify([this.area.value, this.as.value, this.type.value, this.ttl.value, this.name.value]);
  }

  isDirty() {
    return this.state() !== this.first;
  }

  say(words) {
    setText(this.status, words);
  }

  // Shows the same bytes in another way.
  convert() {
    const bytes = parse(this.area.value, this.shown);
    if (bytes === null) {
      this.say(`This is not ${this.shown}.`);
      this.as.value = this.shown;
    } else if (this.as.value === "text" && !isPlain(bytes)) {
      this.say("These bytes cannot be edited as text: they are not UTF-8, or have carriage returns that a field would change.");
      this.as.value = this.shown;
    } else {
      this.say("");
      this.shown = this.as.value;
      this.area.value = text(bytes, this.shown);
    }
  }

  submit(event) {
    event.preventDefault();
    this.write();
  }

  async write() {
    if (this.busy) return;
    const value = parse(this.area.value, this.shown);
    if (value === null) {
      this.say(`The value is not ${this.shown}.`);
      this.area.focus();
      return;
    }
    const key = this.key ?? parse(this.name.value, this.nameAs.value);
    if (key === null || !key.length || !canBeAsked(key)) {
      this.say("A key has at least one byte, and a browser cannot name those that are . or .. alone.");
      this.name.focus();
      return;
    }
    this.busy = true;
    this.save.disabled = true;
    this.say("Saving.");
    const sent = this.state();
    try {
      await ask(this.target(key), { method: "PUT", body: value, headers: this.headers(), timeout: 30_000 });
      this.saved(key);
    } catch (error) {
      await this.failed(error, key, value, sent);
    } finally {
      this.busy = false;
      this.save.disabled = false;
    }
  }

  target(key) {
    const ttl = this.ttl.value.trim();
    if (ttl) return `${keyPath(key)}?ttl=${encodeURIComponent(ttl)}`;
    return this.item?.lease ? `${keyPath(key)}?lease=${this.item.lease}` : keyPath(key);
  }

  headers() {
    const headers = this.base === null ? { "If-None-Match": "*" } : { "If-Match": `"${this.base}"` };
    // Without one fetch would send none, as is right.
    if (this.type.value.trim()) headers["Content-Type"] = this.type.value.trim();
    return headers;
  }

  async failed(error, key, value, sent) {
    if (error instanceof Problem && error.status === 412) {
      await this.compare(key, value, this.unsure.has(sent));
    } else if (isUnknown(error)) {
      this.unsure.add(sent);
      this.say(`It is not known whether it was saved. ${explain(error)} Save again: it cannot happen twice.`);
    } else {
      this.say(`Not saved. ${explain(error)}`);
    }
  }

  // Somebody was faster, or we were (`unsure`) and did not hear of it. Who never sent this before
  // did not write it, even if it is the same: it may have another time to live, or lease.
  async compare(key, value, unsure) {
    let now = null;
    try {
      now = await getKey(key);
    } catch (error) {
      if (!(error instanceof Problem && error.status === 404)) {
        this.say(`Somebody changed it, and it cannot be read. Nothing was saved. ${explain(error)}`);
        return;
      }
    }
    if (unsure && now && same(valueOf(now), value) && now.content_type === this.type.value.trim()) {
      this.saved(key);
      return;
    }
    this.say("");
    this.showConflict(now);
  }

  showConflict(now) {
    const title = now
      ? `Not saved: this key is now at revision ${count(now.mod_revision)}`
      : "Not saved: this key was deleted meanwhile";
    const heading = h("h4", { tabIndex: -1 }, title);
    const parts = [heading];
    const buttons = h("div", { className: "row" });
    if (now) {
      const bytes = valueOf(now);
      const as = toText(bytes) === null ? "hex" : "text";
      parts.push(h("p", {}, `Stored now (${now.content_type || "no type"}):`));
      const stored = h("pre", { id: "conflict-stored", tabIndex: 0, role: "region", "aria-label": "Stored version" });
      setText(stored, text(bytes, as));
      parts.push(stored);
      buttons.append(button("Save mine over it", () => this.insist(now), "danger"));
      buttons.append(button("Take the stored one", () => this.take(now)));
    } else {
      buttons.append(button("Create it again with mine", () => this.insist(null), "danger"));
    }
    parts.push(h("p", { className: "note" }, "Your version is above, as you typed it."), buttons);
    this.conflict.replaceChildren(...parts);
    this.conflict.hidden = false;
    this.conflict.scrollIntoView({ block: "nearest" });
    announce(title);
    // Not a button: a second Enter would press it.
    heading.focus();
  }

  // Replaces what was shown, and only that.
  insist(now) {
    this.rebase(now);
    this.write();
  }

  rebase(now) {
    this.base = now?.mod_revision ?? null;
    this.item = now;
    // What was sent before asked for an older version, and can replace nothing any more.
    this.unsure.clear();
    this.conflict.hidden = true;
    this.conflict.replaceChildren();
  }

  take(now) {
    const mine = { value: this.area.value, as: this.shown, type: this.type.value, ttl: this.ttl.value };
    this.rebase(now);
    const bytes = valueOf(now);
    this.as.value = this.shown = isPlain(bytes) ? "text" : "hex";
    this.area.value = text(bytes, this.shown);
    this.type.value = now.content_type;
    this.ttl.value = left(now);
    const back = button("Bring my version back", () => {
      this.area.value = mine.value;
      this.as.value = this.shown = mine.as;
      this.type.value = mine.type;
      this.ttl.value = mine.ttl;
      this.say("");
      this.area.focus();
    });
    this.status.replaceChildren("This is the stored version. ", back);
    this.area.focus();
  }
}
