// Who is in the cluster and how it is: the header and the table of members.

import { ask, explain, json } from "./api.js";
import { ago, announce, button, byId, confirm, count, h, row, setText, tellTable } from "./dom.js";

// Heartbeats come every few dozen milliseconds: who is silent for so long is most likely dead.
const SILENT_MS = 3000;

const rows = new Map();
let told = { leader: undefined, silent: new Set(), alarms: "" };

const facts = {};
function fact(name, title) {
  const value = h("dd", { id: `fact-${name}` }, "\u2013");
  byId("facts").append(h("div", {}, h("dt", {}, title), value));
  facts[name] = value;
}

export function begin() {
  tellTable(byId("members-table"));
  fact("node", "This node");
  fact("leader", "Leader");
  fact("term", "Term");
  fact("health", "Health");
  fact("keys", "Keys");
  fact("revision", "Revision");
  fact("cluster", "Cluster");
}

export function show(cluster, status) {
  setText(facts.cluster, cluster.cluster_id);
  setText(facts.term, count(cluster.term));
  setText(facts.leader, cluster.leader === null ? "none" : `node ${cluster.leader}`);
  facts.leader.classList.toggle("bad", cluster.leader === null);
  setText(facts.node, `node ${cluster.node}, ${status.role}`);
  setText(facts.keys, count(status.keys));
  setText(facts.revision, count(status.revision));
  document.title = `node ${cluster.node} ${status.role} \u00b7 mmapd`;
  const silent = cluster.members.filter(isSilent);
  health(status, cluster, silent);
  table(cluster);
  tell(cluster, status, silent);
  setText(byId("foot"), `mmapd ${status.version}, up ${ago(status.uptime_seconds * 1000)}`);
}

function isSilent(member) {
  return member.last_contact_ms !== null && member.last_contact_ms > SILENT_MS;
}

function health(status, cluster, silent) {
  const troubles = [...status.alarms];
  if (cluster.leader === null) troubles.push("no leader");
  if (silent.length) troubles.push(`${silent.map((one) => `node ${one.id}`).join(", ")} silent`);
  if (cluster.changing) troubles.push("members are changing");
  // Who does not lead does not know how the others are.
  const good = cluster.leader === cluster.node ? "good" : "good here";
  setText(facts.health, troubles.length ? troubles.join("; ") : good);
  facts.health.classList.toggle("bad", troubles.length > 0);
  facts.health.classList.toggle("good", troubles.length === 0);
}

function table(cluster) {
  const body = byId("members-table").tBodies[0];
  const leads = cluster.leader === cluster.node;
  for (const member of cluster.members) {
    if (!rows.has(member.id)) rows.set(member.id, makeRow(member.id));
    const line = rows.get(member.id);
    if (line.node.parentNode !== body) body.append(line.node);
    fill(line, member, cluster, leads);
  }
  for (const [id, line] of rows) {
    if (cluster.members.some((member) => member.id === id)) continue;
    line.node.remove();
    rows.delete(id);
  }
  const leader = cluster.members.find((member) => member.id === cluster.leader);
  const note = byId("members-note");
  const about = leads ? "" : leader ? `leader ${leader.id} ${leader.url}` : "none";
  if (note.dataset.about === about) return;
  note.dataset.about = about;
  note.replaceChildren();
  if (leads) return;
  if (!leader) {
    note.append("No leader is known here: writes and linearizable reads wait for one.");
    return;
  }
  note.append("Only the leader knows how far the others are: ");
  note.append(link(`${leader.url}/ui`, `dashboard of node ${leader.id}`), ".");
}

// An address that somebody configured becomes a link only if it leads to a page.
function link(url, text) {
  const isWeb = /^https?:\/\//i.test(url);
  return isWeb ? h("a", { href: url, rel: "noreferrer" }, text) : text;
}

function makeRow(id) {
  const part = () => h("span");
  const line = { id, name: part(), tags: part(), url: part(), role: part(), vote: part() };
  Object.assign(line, { match: part(), lag: part(), contact: part() });
  line.lead = button("Make leader", () => transfer(id));
  line.lead.append(h("span", { className: "unseen" }, `: node ${id}`));
  const first = h("span", { className: "member" }, line.name, " ", line.tags);
  line.node = row(byId("members-table"), [
    first, line.url, line.role, line.vote, line.match, line.lag, line.contact, line.lead,
  ]);
  line.node.dataset.node = id;
  return line;
}

function fill(line, member, cluster, leads) {
  const silent = isSilent(member);
  setText(line.name, `Node ${member.id}`);
  const tags = [];
  if (member.id === cluster.leader) tags.push(["leads", "\u2605 leader"]);
  if (member.id === cluster.node) tags.push(["self", "this node"]);
  if (silent) tags.push(["dead", "\u2715 silent"]);
  const shown = tags.map(([, text]) => text).join();
  if (line.tags.dataset.shown !== shown) {
    line.tags.dataset.shown = shown;
    line.tags.replaceChildren(...tags.map(([kind, text]) => h("span", { className: `tag ${kind}` }, text)));
  }
  if (line.url.dataset.shown !== member.url) {
    line.url.dataset.shown = member.url;
    line.url.replaceChildren(link(`${member.url}/ui`, member.url));
  }
  setText(line.role, silent ? `${member.role}, not heard` : member.role);
  setText(line.vote, member.voter ? "voter" : "learner");
  setText(line.match, count(member.match_index));
  setText(line.lag, count(member.lag));
  const isSelf = member.id === cluster.node;
  setText(line.contact, isSelf ? "\u2013" : silent ? `${ago(member.last_contact_ms)} ago` : ago(member.last_contact_ms));
  line.node.classList.toggle("dead", silent);
  line.node.classList.toggle("leads", member.id === cluster.leader);
  line.lead.hidden = !member.voter || member.id === cluster.leader || (leads && silent);
}

function tell(cluster, status, silent) {
  const now = new Set(silent.map((member) => member.id));
  const alarms = status.alarms.join(", ");
  const news = [];
  if (told.leader !== undefined && told.leader !== cluster.leader) {
    news.push(cluster.leader === null ? "There is no leader." : `Node ${cluster.leader} leads, term ${cluster.term}.`);
  }
  for (const id of now) if (!told.silent.has(id)) news.push(`Node ${id} is not heard of.`);
  for (const id of told.silent) if (!now.has(id)) news.push(`Node ${id} is no longer silent.`);
  if (alarms !== told.alarms) news.push(alarms ? `Alarms: ${alarms}.` : "No alarms.");
  told = { leader: cluster.leader, silent: now, alarms };
  if (news.length) announce(news.join(" "));
}

async function transfer(id) {
  const text = `Node ${id} takes over after it has caught up. Writes wait meanwhile.`;
  if (!(await confirm(`Make node ${id} the leader?`, text, "Transfer"))) return;
  setText(byId("members-error"), "");
  try {
    const body = JSON.stringify({ to: id });
    const headers = { "Content-Type": "application/json" };
    await ask("/v1/cluster/leader", { method: "POST", headers, body, timeout: 30_000 });
    announce(`Node ${id} leads.`);
  } catch (error) {
    setText(byId("members-error"), `Leadership was not moved. ${explain(error)}`);
  }
}

// Nothing is heard of the node: whether it is well nobody knows.
export function forget() {
  setText(facts.health, "not known");
  facts.health.classList.remove("good", "bad");
}

export async function poll(timeout) {
  return Promise.all([json("/v1/cluster", { timeout }), json("/v1/status", { timeout })]);
}
