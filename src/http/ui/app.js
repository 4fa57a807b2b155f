// The dashboard: polls its node once a second, and says so when that does not answer.

import { Unreachable, ask, explain, isForbidden, isStranger, signIn, signOut, token } from "./api.js";
import { Chart } from "./chart.js";
import * as cluster from "./cluster.js";
import { announce, ago, button, byId, clock, count, h, perSecond, row, seconds, setText, size, tellTable } from "./dom.js";
import * as keys from "./keys.js";
import { Scrape, quantile, rate, sinceAbout } from "./numbers.js";
import * as watch from "./watch.js";

const PERIOD_MS = 1000;
const TIMEOUT_MS = 4000;
const BACKOFF_MS = 10_000;
const MINUTE_MS = 60_000;
// Rounds in a row whose answers are of different nodes, before the reader hears of it.
const MIXED_MAX = 3;

const charts = {
  latency: new Chart(byId("chart-latency"), {
    title: "Commit latency",
    note: "proposal to commit, as the leader measures it",
    show: seconds,
    lines: [{ name: "p50", style: "one" }, { name: "p99", style: "two" }],
  }),
  writes: new Chart(byId("chart-writes"), {
    title: "Writes",
    note: "entries of the log applied here",
    show: perSecond,
    lines: [{ name: "entries", style: "one" }],
  }),
  requests: new Chart(byId("chart-requests"), {
    title: "Requests",
    note: "of clients to this node; not those of nodes or of this page",
    show: perSecond,
    lines: [{ name: "reads", style: "one" }, { name: "writes", style: "two" }],
  }),
};

let scrapes = [];
const files = new Map();

function isData({ route = "" }) {
  return /^\/(v1|set|get)\//.test(route) && !/^\/v1\/(raft|status|cluster)\b/.test(route);
}

const isRead = ({ method }) => method === "GET" || method === "HEAD";

function draw(scrape, status) {
  const before = scrapes[scrapes.length - 1];
  scrapes = [...scrapes.filter((one) => scrape.time - one.time < 2 * MINUTE_MS), scrape];
  if (before) {
    const latency = "mmapd_raft_commit_latency_seconds";
    const requests = "mmapd_http_requests_total";
    charts.latency.add(scrape.time, [0.5, 0.99].map((part) => quantile(part, before, scrape, latency)));
    charts.writes.add(scrape.time, [rate(before, scrape, "mmapd_raft_applied_entries_total")]);
    charts.requests.add(scrape.time, [
      rate(before, scrape, requests, (of) => isData(of) && isRead(of)),
      rate(before, scrape, requests, (of) => isData(of) && !isRead(of)),
    ]);
  }
  file("log", scrape, status.log_size_bytes, null);
  file("db", scrape, status.db_size_bytes, status.db_live_bytes);
}

function file(name, scrape, bytes, live) {
  const of = ({ file: one }) => one === name;
  if (!files.has(name)) {
    const cells = Array.from({ length: 10 }, () => h("span"));
    setText(cells[0], name === "log" ? "Log" : "Database");
    byId("files-table").tBodies[0].append(row(byId("files-table"), cells));
    files.set(name, cells);
  }
  const sum = (metric) => scrape.sum(`mmapd_mmap_${metric}`, of);
  const since = sinceAbout(scrapes, MINUTE_MS);
  const p99 = quantile(0.99, since, scrape, "mmapd_mmap_msync_duration_seconds", of);
  const texts = [
    size(sum("mapped_bytes")), size(sum("resident_bytes")), size(bytes), live === null ? "\u2013" : size(live),
    count(sum("msyncs_total")), seconds(p99), size(sum("msync_bytes_total")),
    count(sum("msync_errors_total")), count(sum("remaps_total")),
  ];
  const cells = files.get(name);
  texts.forEach((text, at) => setText(cells[at + 1], text));
  cells[8].classList.toggle("bad", sum("msync_errors_total") > 0);
}

// Whether the node answers, and what to do when it does not. `told`: what the reader was told.
const state = { failures: 0, mixed: 0, told: "", since: 0, good: 0, node: null, timer: 0, ticker: 0, next: 0 };

// Behind a balancer each answer may be of another node: they make no picture together.
class Mixed extends Error {}

async function round() {
  const [[members, status], metrics] = await Promise.all([
    cluster.poll(TIMEOUT_MS),
    ask("/metrics", { timeout: TIMEOUT_MS }),
  ]);
  const nodes = new Set([members.node, status.id, Number(metrics.response.headers.get("mmapd-node"))]);
  if (nodes.size > 1) throw new Mixed(`nodes ${[...nodes].join(", ")}`);
  return { members, status, scrape: new Scrape(metrics.text, Date.now()) };
}

async function poll() {
  clearTimeout(state.timer);
  const start = Date.now();
  try {
    const { members, status, scrape } = await round();
    found(members.node);
    cluster.show(members, status);
    draw(scrape, status);
    state.good = Date.now();
  } catch (error) {
    // Until somebody signs in there is nothing to ask for.
    if (isStranger(error)) return;
    state.mixed = error instanceof Mixed ? state.mixed + 1 : 0;
    if (!state.mixed || state.mixed >= MIXED_MAX) lost(error);
  }
  const wait = state.failures ? Math.min(BACKOFF_MS, PERIOD_MS * 2 ** (state.failures - 1)) : PERIOD_MS;
  state.next = state.failures ? Date.now() + wait : start + wait;
  state.timer = setTimeout(poll, Math.max(0, state.next - Date.now()));
}

function mark(isOld) {
  document.body.classList.toggle("is-old", isOld);
  for (const old of document.querySelectorAll(".old")) old.hidden = !isOld;
}

function found(node) {
  // What one node counted and what another did have nothing to do with each other.
  if (state.node !== node) {
    scrapes = [];
    for (const chart of Object.values(charts)) chart.clear();
  }
  state.node = node;
  state.mixed = 0;
  if (!state.failures) return;
  state.failures = 0;
  clearInterval(state.ticker);
  byId("lost").hidden = true;
  byId("lost").replaceChildren();
  mark(false);
  announce(state.told === "silent" ? `Node ${node} answers again.` : `Node ${node} is shown.`);
  state.told = "";
  keys.again();
}

// What keeps the picture from being a new one, in words.
function trouble(error) {
  const who = state.node === null ? "The node" : `Node ${state.node}`;
  if (error instanceof Mixed) {
    return {
      kind: "mixed", title: "Different nodes answer", since: "For",
      why: ` (${error.message}): a balancer spreads what this page asks. Open the page of one node, or let the balancer keep a browser at one.`,
    };
  }
  if (isForbidden(error)) {
    const asker = token() === null ? "Who has no token" : "This token";
    return {
      kind: "forbidden", title: `${asker} may not see the cluster`, since: "For",
      why: ": members, load and files need the right observe. Keys and watches work as far as it has rights.",
    };
  }
  const why = error instanceof Unreachable ? ` (${error.message}).` : ` ${explain(error)}`;
  return { kind: "silent", title: `${who} does not answer`, why, since: "Silent for" };
}

function lost(error) {
  const { kind, title, why, since } = trouble(error);
  state.failures += 1;
  if (state.told === kind) return;
  state.told = kind;
  state.since = Date.now();
  mark(state.good > 0);
  cluster.forget();
  const unheard = kind === "silent" ? "Nothing was heard of it yet." : "";
  const seen = state.good ? `What is shown is from ${clock(state.good)}.` : unheard;
  // Only this is read out; the count of seconds is not.
  const count = h("span", { "aria-hidden": "true" });
  const ways = [button("Try now", poll)];
  if (kind === "forbidden") ways.push(" ", button("Use another token", askWho));
  byId("lost").replaceChildren(h("strong", {}, title), `${why} ${seen} `, count, " ", ...ways);
  byId("lost").hidden = false;
  const tick = () => {
    const left = Math.max(0, Math.ceil((state.next - Date.now()) / 1000));
    setText(count, `${since} ${ago(Date.now() - state.since)}; trying ${left ? `again in ${left} s` : "now"}.`);
  };
  clearInterval(state.ticker);
  state.ticker = setInterval(tick, 500);
}

// A token is asked for when the node wants to know who asks.
function stranger() {
  mark(state.good > 0);
  byId("sign-out").hidden = true;
  if (!byId("sign-in").hidden) return;
  setText(byId("sign-in-state"), token() === null ? "" : "The node does not know this token, or not any more.");
  signOut();
  askWho();
}

function askWho() {
  byId("sign-in").hidden = false;
  byId("token").focus();
}

function known() {
  byId("sign-in").hidden = true;
  byId("sign-out").hidden = token() === null;
}

document.addEventListener("stranger", stranger);
byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(byId("token").value.trim());
  byId("token").value = "";
  known();
  mark(false);
  announce("Signed in.");
  // Somebody else asks: what holds for them is to be told, even if it is the same.
  state.told = "";
  poll();
  keys.again();
  watch.again();
});
byId("sign-out").addEventListener("click", () => {
  signOut();
  // Nothing of what was shown stays behind.
  location.reload();
});
known();

cluster.begin();
tellTable(byId("files-table"));
keys.begin();
watch.begin();
poll();
