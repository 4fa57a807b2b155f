// Elements made by hand: what came from elsewhere only ever becomes text.

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

// An element: `on` has its listeners, names of properties are set as such, the rest are attributes.
export function h(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (["value", "disabled", "hidden", "className", "tabIndex", "type"].includes(name)) {
      node[name] = value;
    } else {
      node.setAttribute(name, value);
    }
  }
  node.append(...children);
  return node;
}

export function svg(tag, given = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function button(text, listener, className = "") {
  return h("button", { type: "button", className, on: { click: listener } }, text);
}

export function options(...names) {
  return names.map((name) => h("option", { value: name }, name));
}

// Sets what changed, so that nothing is read out or selected anew for no reason.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A row of a table that is shown as a card where there is no room: each cell knows its column.
export function row(table, cells) {
  const heads = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
  const line = h("tr", { role: "row" });
  cells.forEach((cell, at) => {
    const numeric = table.tHead.rows[0].cells[at].classList.contains("number");
    const node = h(at === 0 ? "th" : "td", {
      role: at === 0 ? "rowheader" : "cell",
      "data-label": heads[at],
      className: numeric ? "number" : "",
    });
    if (at === 0) node.setAttribute("scope", "row");
    node.append(cell);
    line.append(node);
  });
  return line;
}

// Cards are no table for a browser unless it is told.
export function tellTable(table) {
  table.setAttribute("role", "table");
  table.tHead.setAttribute("role", "rowgroup");
  table.tHead.rows[0].setAttribute("role", "row");
  for (const cell of table.tHead.rows[0].cells) cell.setAttribute("role", "columnheader");
  table.tBodies[0].setAttribute("role", "rowgroup");
}

// Says something to who cannot see it.
export function announce(text) {
  setText(byId("announce"), text);
}

// Asks before something is done; Esc and Cancel are no.
export function confirm(title, text, action) {
  const dialog = byId("dialog");
  setText(byId("dialog-title"), title);
  setText(byId("dialog-text"), text);
  setText(byId("dialog-yes"), action);
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    byId("dialog-yes").onclick = () => dialog.close("yes");
    byId("dialog-no").onclick = () => dialog.close("");
    dialog.showModal();
    byId("dialog-no").focus();
  });
}

const grouped = new Intl.NumberFormat("en");

export function count(number) {
  return number === null || number === undefined ? "\u2013" : grouped.format(number);
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "\u2013";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let rest = bytes;
  while (rest >= 1024 && unit < units.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${unit && rest < 100 ? rest.toFixed(1) : Math.round(rest)} ${units[unit]}`;
}

// Three digits and a unit.
export function seconds(time) {
  if (time === null || time === undefined) return "\u2013";
  if (time === Infinity) return "over 3 s";
  if (time === 0) return "0 s";
  const [scale, unit] = time < 1e-3 ? [1e6, "\u00b5s"] : time < 1 ? [1e3, "ms"] : [1, "s"];
  return `${digits(time * scale)} ${unit}`;
}

export function perSecond(rate) {
  return rate === null || rate === undefined ? "\u2013" : `${digits(rate)} /s`;
}

function digits(number) {
  if (number === 0) return "0";
  if (number >= 100) return grouped.format(Math.round(number));
  return number >= 10 ? number.toFixed(1).replace(/\.0$/, "") : number.toFixed(2).replace(/\.?0+$/, "");
}

// How long something takes or is ago, for people.
export function ago(ms) {
  if (ms === null || ms === undefined) return "\u2013";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min`;
  return `${Math.floor(ms / 3_600_000)} h ${Math.floor((ms % 3_600_000) / 60_000)} min`;
}

// A time to live as the API says it, "3599950ms", in milliseconds.
export function lifetime(text) {
  const found = /^(\d+)(ms|s|m|h|d)$/.exec(text);
  return found && found[1] * { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }[found[2]];
}

export function clock(time) {
  return new Date(time).toLocaleTimeString("en-GB");
}
