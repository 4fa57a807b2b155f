// Uses the dashboard as a person would, in headless Chromium, on a cluster of three processes
// that it starts, kills and starts again. Fails on the first thing that is not as it should be.
//
//   NODE_PATH=.../node_modules unshare -n sh -c 'ip link set lo up && node .ci/ui.mjs BINARY [PICTURES]'
//
// NODE_PATH has playwright-core and axe-core. Nothing is waited for by the clock: each step
// waits for what the next one needs. Pictures of the stations are kept in target/ui.
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { createWriteStream, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { Agent, createServer as createProxy, request as ask } from "node:http";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const [binary, pictures] = [process.argv[2], process.argv[3] ?? "target/ui"].map((path) => resolve(path));
const require = createRequire(process.env.NODE_PATH + "/");
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
mkdirSync(pictures, { recursive: true });
const home = mkdtempSync(join(tmpdir(), "mmapd-ui-"));
const PATIENCE = 30_000;

// However this ends, nothing that it started goes on.
const children = new Set();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
  rmSync(home, { recursive: true, force: true });
});
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(1));

// ---- the cluster

function freePort() {
  return new Promise((found, failed) => {
    const server = createServer().once("error", failed);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => found(port));
    });
  });
}

class Member {
  constructor(id, port) {
    Object.assign(this, { id, port, base: `http://127.0.0.1:${port}`, child: null });
    this.log = createWriteStream(join(pictures, `node${id}.log`));
  }

  configure(members) {
    const peers = members.map(({ id, base }) => `[[cluster.peers]]\nid = ${id}\nurl = "${base}"\n`);
    this.config = join(home, `node${this.id}.toml`);
    const data = join(home, `node${this.id}`);
    writeFileSync(this.config, `[node]\nid = ${this.id}\nlisten = "127.0.0.1:${this.port}"\n
[storage]\ndb = "${data}/db.mmapd"\nlog = "${data}/log"\n
[cluster]\nname = "dashboard"\n\n${peers.join("\n")}`);
  }

  start() {
    this.child = spawn(binary, ["--config", this.config], { stdio: ["ignore", "pipe", "pipe"] });
    this.child.stdout.pipe(this.log, { end: false });
    this.child.stderr.pipe(this.log, { end: false });
    const { child } = this;
    children.add(child);
    this.gone = new Promise((gone) => child.once("exit", gone));
    child.once("exit", () => children.delete(child));
  }

  async kill() {
    this.child.kill("SIGKILL");
    await this.gone;
  }

  async ask(path, given) {
    return fetch(this.base + path, { ...given, signal: AbortSignal.timeout(10_000) });
  }

  async status() {
    return (await this.ask("/v1/status")).json();
  }

  async put(key, body, headers = {}) {
    const response = await this.ask(`/v1/keys/${key}`, { method: "PUT", body, headers });
    must(response.ok, `PUT ${key}: ${response.status}`);
    return response.json();
  }

  async get(key) {
    const response = await this.ask(`/v1/keys/${key}`);
    return { status: response.status, text: await response.text(), type: response.headers.get("content-type") };
  }
}

function must(holds, what) {
  if (!holds) throw new Error(what);
}

function equal(got, want, what) {
  must(got === want, `${what}: ${JSON.stringify(got)} instead of ${JSON.stringify(want)}`);
}

// Asks until the answer is one; what is asked takes its time itself.
async function until(what, ask) {
  const end = Date.now() + PATIENCE;
  let last;
  while (Date.now() < end) {
    try {
      last = await ask();
      if (last) return last;
    } catch (error) {
      last = error;
    }
    await new Promise((next) => setTimeout(next, 50));
  }
  throw new Error(`waited in vain for ${what}; last: ${last}`);
}

const members = [];
for (let id = 1; id <= 3; id += 1) members.push(new Member(id, await freePort()));
for (const member of members) member.configure(members);

async function leaderOf(some) {
  return until("a leader that all know", async () => {
    const all = await Promise.all(some.map((member) => member.status()));
    const { leader } = all[0];
    return leader !== null && all.every((one) => one.leader === leader) && members.find(({ id }) => id === leader);
  });
}

// ---- the browser

const problems = [];
// What the console may say at this station: a refusal or a dead node is an error to the browser.
let forgiven = null;

const context = await chromium.launchPersistentContext(join(home, "profile"), {
  executablePath: "/usr/bin/chromium",
  headless: true,
  viewport: { width: 1360, height: 900 },
  args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
  ],
});

async function open(url) {
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.on("pageerror", (error) => problems.push(`the page threw: ${error}`));
  page.on("console", (message) => {
    if (!["error", "warning"].includes(message.type()) || forgiven?.test(message.text())) return;
    problems.push(`the console says: ${message.text()} ${message.location().url}`);
  });
  page.on("request", (request) => {
    const to = new URL(request.url());
    if (to.origin !== new URL(url).origin && to.protocol !== "data:") problems.push(`a request to elsewhere: ${to}`);
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => {
      console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`);
    });
  });
  await page.goto(url, { waitUntil: "load" });
  return page;
}

const picture = (page, name, whole = true) => page.screenshot({ path: join(pictures, `${name}.png`), fullPage: whole });
const text = async (page, selector) => (await page.locator(selector).innerText()).trim();
const shows = (page, selector, words) => page.locator(selector).filter({ hasText: words }).first().waitFor();
// count() does not wait: as many have to come before it may say that there are no more.
async function counts(page, selector, want, what) {
  if (want) await page.locator(selector).nth(want - 1).waitFor({ state: "attached" });
  equal(await page.locator(selector).count(), want, what);
}
const memberRow = (id) => `#members-table tr[data-node="${id}"]`;

async function accessible(page, station) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  for (const { id, impact, help, nodes } of violations) {
    const where = nodes.map((node) => node.html).join(" ").slice(0, 400);
    const words = `axe, ${station}: ${id} (${impact}): ${help}: ${where}`;
    if (impact === "serious" || impact === "critical") problems.push(words);
    else console.log(words);
  }
}

async function narrow(page, station) {
  const { clientWidth, scrollWidth } = await page.evaluate(() => document.documentElement);
  if (scrollWidth > clientWidth) problems.push(`${station}: ${scrollWidth} px wide, there is room for ${clientWidth}`);
}

// Presses Tab until the element has the focus: it can be reached without a mouse.
async function tabTo(page, selector) {
  for (let presses = 0; presses < 80; presses += 1) {
    if (await page.evaluate((one) => document.activeElement?.matches(one), selector)) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`the keyboard does not lead to ${selector}`);
}

// ---- the stations

async function overview(page, leader, here) {
  await counts(page, "#members-table tbody tr", 3, "members shown");
  await shows(page, memberRow(leader.id), "leader");
  await shows(page, memberRow(here.id), "this node");
  equal(await text(page, "#fact-leader"), `node ${leader.id}`, "the leader");
  equal(await text(page, "#fact-term"), String((await here.status()).term), "the term");
  equal(await text(page, "#fact-cluster"), (await here.status()).cluster_id, "the cluster");
  equal(await text(page, "#fact-health"), leader === here ? "good" : "good here", "the health");
  const beside = await page.evaluate(() => {
    const titles = Array.from(document.querySelectorAll("main > section > h2"));
    const bottom = (node) => node.getBoundingClientRect().bottom;
    const last = (node) => node.parentNode.lastElementChild.getBoundingClientRect().top;
    return titles.filter((title) => bottom(title) > last(title)).map((title) => title.textContent);
  });
  equal(beside.join(), "", "titles that do not stand above their sections");
  // Only the leader knows how far the others are, and this is not its page.
  equal(await page.getAttribute("#members-note a", "href"), `${leader.base}/ui`, "the way to the leader");
  await picture(page, "follower");
}

// By the button; Esc means no.
async function makeLeader(page, to) {
  const press = () => page.locator(`${memberRow(to.id)} button`).click();
  await press();
  await page.locator("#dialog[open]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("#dialog[open]").waitFor({ state: "detached" });
  await press();
  await page.locator("#dialog-yes").click();
  await page.locator(`${memberRow(to.id)}.leads`).waitFor();
  await shows(page, "#announce", `Node ${to.id} leads`);
}

async function load(page, to) {
  let stop = false;
  // Raced with what is waited for, so that a write that fails is told at once, and not by the end
  // of the process.
  const writer = (async () => {
    for (let n = 0; !stop; n += 1) {
      await to.put(`load/${n % 50}`, `value ${n}`);
      await to.get(`load/${n % 50}`);
    }
  })();
  const drawn = page.waitForFunction(() => {
    const values = (id) => Array.from(document.querySelectorAll(`#${id} strong`), (one) => one.textContent);
    const good = (value) => /^[1-9.,0-9]+ (\u00b5s|ms|s|\/s)$/.test(value) && !/^0 /.test(value);
    const all = ["chart-latency", "chart-writes", "chart-requests"].flatMap(values);
    const lines = Array.from(document.querySelectorAll("path.line"), (path) => path.getAttribute("d"));
    return all.length === 5 && all.every(good) && lines.every((path) => (path.match(/L/g) ?? []).length >= 6);
  });
  try {
    await Promise.race([drawn, writer]);
    await picture(page, "load");
  } finally {
    stop = true;
  }
  await writer;
  await counts(page, "#files-table tbody tr", 2, "files shown");
  const cells = await page.locator("#files-table tbody tr").allInnerTexts();
  must(cells[0].includes("MiB"), `sizes of the log: ${cells[0]}`);
}

async function makeKeys(to) {
  await to.put("color", "blue", { "content-type": "text/plain" });
  await to.put("unseen", "0");
  await to.put("shape/round", "1");
  await to.put("shape/square", "2");
  await to.put("a%20%2F%25%3F%23%26%2B%C3%A4", "odd");
  await to.put("%FF%00%FE", "bytes");
  await to.put("binary", new Uint8Array([0, 255, 13, 10, 65]));
  await to.put("lines", "one\r\ntwo\r\n", { "content-type": "text/plain" });
  await to.put("%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E", "<script>alert(2)</script>", { "content-type": "text/html" });
  const lines = Array.from({ length: 250 }, (_, n) => JSON.stringify({ put: { key: `many/${n}`, value: String(n) } }));
  must((await to.ask("/v1/batch", { method: "POST", body: lines.join("\n") })).ok, "a batch");
}

const selected = (page) => page.locator("#keys-list .active .name").innerText();

async function byKeyboard(page) {
  await page.reload({ waitUntil: "load" });
  await shows(page, "#keys-list li", "color");
  await page.keyboard.press("Tab");
  equal(await page.evaluate(() => document.activeElement.className), "skip", "the first stop");
  await page.keyboard.press("Enter");
  equal(await page.evaluate(() => document.activeElement.id), "main", "after the skip link");
  await tabTo(page, "#keys-list");
  await page.keyboard.press("Home");
  for (let n = 0; (await selected(page)) !== "shape/"; n += 1) {
    must(n < 50, "shape/ is not in the list");
    await page.keyboard.press("ArrowDown");
  }
  await page.keyboard.press("Enter");
  await shows(page, "#keys-list li", "round");
  await page.keyboard.press("ArrowDown");
  equal(await selected(page), "square", "after an arrow");
  await page.keyboard.press("Enter");
  await shows(page, "#value-title", "shape/square");
  equal(await text(page, "#value-text"), "2", "the value");
  must(await page.evaluate(() => document.activeElement.id === "keys-list"), "the focus stays in the list");
  await picture(page, "keyboard", false);
  await page.keyboard.press("Backspace");
  await shows(page, "#keys-list li", "color");
}

async function pages(page) {
  await page.fill("#keys-prefix", "many/");
  await page.click("#keys-form button[type=submit]");
  await shows(page, "#keys-state", "100 keys; page 1");
  await page.click("#keys-next");
  await shows(page, "#keys-state", "page 2");
  await page.click("#keys-next");
  await shows(page, "#keys-state", "50 keys; page 3");
  must(await page.locator("#keys-next").isDisabled(), "a page after the last");
  await page.click("#keys-back");
  await shows(page, "#keys-state", "100 keys; page 2");
  await page.click("#keys-path button:first-child");
  await shows(page, "#keys-list li", "color");
}

const clickKey = (page, bytes) => page.click(`#keys-list [data-key="${Buffer.from(bytes).toString("hex")}"]`);

async function oddBytes(page, node) {
  await clickKey(page, [255, 0, 254]);
  await shows(page, "#value-title", "0xff00fe");
  equal(await text(page, "#value-text"), "bytes", "the value of a key that is not UTF-8");
  await clickKey(page, Buffer.from("a /"));
  await clickKey(page, Buffer.from("a /%?#&+\u00e4"));
  await shows(page, "#value-text", "odd");
  await page.click("#keys-path button:first-child");
  await clickKey(page, Buffer.from("binary"));
  await shows(page, "#value-text", "00 ff 0d 0a 41");
  // Line ends that a text field would change are not: only the letter is another.
  await clickKey(page, Buffer.from("lines"));
  await shows(page, "#value-text", "two");
  await page.click("#detail button.main");
  equal(await page.inputValue("#edit-as"), "hex", "how carriage returns are edited");
  const hex = await page.inputValue("#edit-value");
  await page.fill("#edit-value", hex.replace("6f 6e 65", "4f 6e 65"));
  await page.click(".editor button.main");
  await shows(page, "#value-text", "One");
  equal((await node.get("lines")).text, "One\r\ntwo\r\n", "line ends");
  // What looks like a page is text.
  await clickKey(page, Buffer.from("<img src=x onerror=alert(1)>"));
  await shows(page, "#value-text", "<script>alert(2)</script>");
  await counts(page, "#keys-list img, #detail img", 0, "images made of data");
}

async function life(page, node) {
  await page.click("#keys-new");
  await page.fill("#edit-key", "made/here");
  await page.fill("#edit-value", "first \u00e4");
  await page.fill("#edit-ttl", "1h");
  await page.click(".editor button.main");
  await shows(page, "#value-title", "made/here");
  equal((await node.get("made/here")).text, "first \u00e4", "what was created");
  const { ttl } = await (await node.ask("/v1/keys/made/here", { headers: { accept: "application/json" } })).json();
  must(/^(1h|35\d\d(\d{3}m)?s)$/.test(ttl), `its time: ${ttl}`);

  await page.click("#detail button.main");
  await page.fill("#edit-value", "second");
  await page.fill("#edit-ttl", "");
  await page.click(".editor button.main");
  await shows(page, "#value-text", "second");
  equal((await node.get("made/here")).text, "second", "what was edited");

  // To create what is there shows what is there.
  forgiven = /status of 412/;
  await page.click("#keys-new");
  await page.fill("#edit-key", "color");
  await page.fill("#edit-value", "mine");
  await page.click(".editor button.main");
  await shows(page, "#conflict-stored", "blue");
  equal((await node.get("color")).text, "blue", "a key that was there");
  await page.click("text=Cancel >> visible=true");
  await page.locator("#dialog[open]").waitFor();
  await page.click("#dialog-yes");
  forgiven = null;
}

async function conflict(page, node) {
  await clickKey(page, Buffer.from("color"));
  await shows(page, "#value-text", "blue");
  await page.click("#detail button.main");
  await page.fill("#edit-value", "mine");
  await node.put("color", "theirs", { "content-type": "text/plain" });
  forgiven = /status of 412/;
  await page.click(".editor button.main");
  await shows(page, "#conflict-stored", "theirs");
  equal(await page.inputValue("#edit-value"), "mine", "what was typed");
  // Enter once too often overwrites nothing.
  must(await page.evaluate(() => document.activeElement.tagName === "H4"), "the focus is on a button");
  equal((await node.get("color")).text, "theirs", "what others wrote");
  await picture(page, "conflict", false);
  await accessible(page, "conflict");
  await page.setViewportSize({ width: 320, height: 700 });
  await narrow(page, "conflict at 320 px");
  await picture(page, "conflict-320", false);
  await page.setViewportSize({ width: 1360, height: 900 });
  // Theirs, mine again, and again somebody is faster.
  await page.click("text=Take the stored one");
  equal(await page.inputValue("#edit-value"), "theirs", "what was taken");
  await page.click("text=Bring my version back");
  equal(await page.inputValue("#edit-value"), "mine", "what was brought back");
  await node.put("color", "theirs again", { "content-type": "text/plain" });
  await page.click(".editor button.main");
  await shows(page, "#conflict-stored", "theirs again");
  await page.click("text=Save mine over it");
  await shows(page, "#value-text", "mine");
  equal((await node.get("color")).text, "mine", "what was insisted on");
  // It is gone while it is edited.
  await clickKey(page, Buffer.from("unseen"));
  await page.click("#detail button.main");
  await page.fill("#edit-value", "still wanted");
  await node.ask("/v1/keys/unseen", { method: "DELETE" });
  forgiven = /status of (404|412)/;
  await page.click(".editor button.main");
  await shows(page, ".conflict", "deleted meanwhile");
  await page.click("text=Create it again with mine");
  await shows(page, "#value-text", "still wanted");
  equal((await node.get("unseen")).text, "still wanted", "what was made again");
  await clickKey(page, Buffer.from("color"));
  await shows(page, "#value-text", "mine");
  forgiven = null;
}

// The same value is no proof that it is ours; to have sent it and not heard of it is.
async function sameValue(page, node) {
  const type = { "content-type": "text/plain; charset=utf-8" };
  const version = async () => {
    const answer = await node.ask("/v1/keys/twice", { headers: { accept: "application/json" } });
    return (await answer.json()).version;
  };
  await page.click("#keys-new");
  await page.fill("#edit-key", "twice");
  await page.fill("#edit-value", "first");
  await page.click(".editor button.main");
  await shows(page, "#value-title", "twice");
  await page.click("#detail button.main");
  await page.fill("#edit-value", "equal");
  await node.put("twice", "equal", type);
  forgiven = /status of 412|ERR_FAILED/;
  await page.click(".editor button.main");
  await shows(page, "#conflict-stored", "equal");
  await page.click("text=Take the stored one");
  await page.fill("#edit-value", "unheard");
  await page.route("**/v1/keys/twice*", async (route) => {
    if (route.request().method() !== "PUT") return route.continue();
    await route.fetch();
    return route.abort();
  });
  await page.click(".editor button.main");
  await shows(page, "#edit-status", "not known whether it was saved");
  await page.unroute("**/v1/keys/twice*");
  await page.click(".editor button.main");
  await shows(page, "#value-text", "unheard");
  equal(await version(), 3, "the version of what was saved once");
  forgiven = null;
}

async function past(page) {
  await page.click("text=History");
  await shows(page, "#detail tbody tr", "theirs again");
  await counts(page, "#detail tbody tr", 4, "changes of color");
  await picture(page, "history", false);
}

async function remove(page, node) {
  const before = (await node.get("color")).text;
  const press = () => page.locator("#detail button.danger").click();
  await press();
  await page.locator("#dialog[open]").waitFor();
  await picture(page, "delete", false);
  await page.keyboard.press("Escape");
  await page.locator("#dialog[open]").waitFor({ state: "detached" });
  equal((await node.get("color")).text, before, "after Esc");
  // Somebody changes it while the question is asked.
  await press();
  await node.put("color", "changed", { "content-type": "text/plain" });
  forgiven = /status of 412/;
  await page.click("#dialog-yes");
  await shows(page, "#detail .banner", "not deleted");
  equal((await node.get("color")).text, "changed", "what was changed meanwhile");
  forgiven = null;
  await press();
  await page.click("#dialog-yes");
  await shows(page, "#detail", "is deleted");
  equal((await node.get("color")).status, 404, "what was deleted");
  await page.locator(`#keys-list [data-key="${Buffer.from("color").toString("hex")}"]`).waitFor({ state: "detached" });
}

async function watching(page, node) {
  await page.fill("#watch-prefix", "seen/");
  await page.click("#watch-start");
  await shows(page, "#watch-state", "Watching keys that begin with seen/");
  await node.put("unseen", "1");
  await node.put("seen/a", "hello");
  await shows(page, "#watch-table tbody tr", "hello");
  await node.ask("/v1/keys/seen/a", { method: "DELETE" });
  await shows(page, "#watch-table tbody tr", "delete");
  await counts(page, "#watch-table tbody tr", 2, "changes seen");
}

// The page loses its node, says so, and goes on by itself.
async function lost(page, node) {
  forgiven = /ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE_CHUNKED|ERR_SOCKET|status of 503/;
  await node.kill();
  await shows(page, "#lost", `Node ${node.id} does not answer`);
  await shows(page, "#fact-health", "not known");
  must(await page.locator("#members .old").isVisible(), "the picture is not marked as old");
  await counts(page, "#members-table tbody tr", 3, "members of the old picture");
  await picture(page, "lost");
  await accessible(page, "lost");
  node.start();
  await page.locator("#lost").waitFor({ state: "hidden" });
  must(!(await page.locator("#members .old").isVisible()), "the new picture is marked as old");
  await shows(page, "#fact-health", "good");
  // The watch missed nothing, whichever way it came back.
  await shows(page, "#watch-state", "Watching");
  await node.put("seen/b", "after the fall");
  await shows(page, "#watch-table tbody tr", "after the fall");
  await counts(page, "#watch-table tbody tr", 3, "changes seen after all");
  const many = Array.from({ length: 210 }, (_, n) => JSON.stringify({ put: { key: `seen/${n}`, value: "x" } }));
  must((await node.ask("/v1/batch", { method: "POST", body: many.join("\n") })).ok, "a batch");
  await shows(page, "#watch-table tbody tr:first-child", "seen/209");
  await counts(page, "#watch-table tbody tr", 200, "changes kept");
  await page.click("#watch-stop");
  await shows(page, "#watch-state", "Not watching");
  forgiven = null;
}

// Its node lives, the leader does not.
async function leaderDies(page, leader, here) {
  await leader.kill();
  await page.waitForFunction((old) => {
    const now = document.getElementById("fact-leader").textContent;
    return now.startsWith("node ") && now !== `node ${old}`;
  }, leader.id);
  const next = await leaderOf(members.filter((one) => one !== leader));
  await page.locator(`${memberRow(next.id)}.leads`).waitFor();
  // Only a leader hears of the others.
  if (next !== here) await makeLeader(page, here);
  await page.locator(`${memberRow(leader.id)}.dead`).waitFor();
  await shows(page, memberRow(leader.id), "silent");
  await shows(page, "#fact-health", `node ${leader.id} silent`);
  await picture(page, "dead");
  await accessible(page, "dead");
  leader.start();
  await page.locator(`${memberRow(leader.id)}:not(.dead)`).waitFor();
  await shows(page, "#fact-health", "good");
  const index = (await here.status()).last_log_index.toLocaleString("en");
  await shows(page, `${memberRow(leader.id)} td:nth-child(5)`, index);
}

async function looks(page) {
  await page.emulateMedia({ colorScheme: "dark" });
  await picture(page, "dark");
  await accessible(page, "dark");
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
  equal(await page.evaluate(() => getComputedStyle(document.documentElement).scrollBehavior), "auto", "motion");
  await page.setViewportSize({ width: 320, height: 700 });
  await narrow(page, "320 px");
  await picture(page, "320");
  await accessible(page, "320 px");
  await page.setViewportSize({ width: 1360, height: 900 });
  await picture(page, "light");
  await accessible(page, "light");
}

async function docs(node) {
  const page = await open(`${node.base}/docs/`);
  const path = '.opblock-summary-path[data-path="/v1/status"]';
  const block = page.locator(`.opblock-get:has(${path})`).first();
  await block.locator(".opblock-summary-control").click();
  await block.locator(".try-out__btn").click();
  await block.locator("button.execute").click();
  const live = block.locator(".live-responses-table tr.response");
  must((await live.locator(".response-col_status").first().innerText()).startsWith("200"), "/docs: GET /v1/status");
  await picture(page, "docs");
  await page.close();
}

// What something between browser and nodes makes of it: each answer from another node, or from
// one that changes.
async function balanced(first, second) {
  let pick = (path) => (path === "/metrics" ? second : first);
  const agent = new Agent({ keepAlive: true });
  const proxy = createProxy((asked, answer) => {
    const { method, url: path, headers } = asked;
    const passed = ask({ agent, host: "127.0.0.1", port: pick(path).port, method, path, headers }, (got) => {
      answer.writeHead(got.statusCode, got.headers);
      got.pipe(answer);
    });
    passed.on("error", () => answer.destroy());
    asked.pipe(passed);
  });
  const port = await freePort();
  await new Promise((ready) => proxy.listen(port, "127.0.0.1", ready));
  try {
    const page = await open(`http://127.0.0.1:${port}/ui`);
    await shows(page, "#lost", "Different nodes answer");
    await counts(page, "#members-table tbody tr", 0, "members of a mixed picture");
    await picture(page, "mixed");
    await accessible(page, "mixed");
    pick = () => first;
    await page.locator("#lost").waitFor({ state: "hidden" });
    await shows(page, "#fact-node", `node ${first.id},`);
    const drawn = ([node, least, most]) => {
      const path = document.querySelector("#chart-writes path.line")?.getAttribute("d") ?? "";
      const steps = (path.match(/L/g) ?? []).length;
      return document.getElementById("fact-node").textContent.startsWith(node) && steps >= least && steps <= most;
    };
    await page.waitForFunction(drawn, [`node ${first.id},`, 4, 1000]);
    pick = () => second;
    await page.waitForFunction(drawn, [`node ${second.id},`, 0, 2]);
    await page.close();
  } finally {
    proxy.close();
    proxy.closeAllConnections();
    agent.destroy();
  }
}

// A node that wants to know who asks: the page asks for a token, and keeps it while the tab is open.
async function tokens() {
  const member = new Member(4, await freePort());
  member.configure([member]);
  const file = join(home, "tokens.toml");
  const table = (name, token, verbs) => {
    const sha256 = createHash("sha256").update(token).digest("hex");
    return `[[roles]]\nname = "${name}"\nrights = [{ verbs = [${verbs}] }]\n
[[tokens]]\nname = "${name}"\nsha256 = "${sha256}"\nroles = ["${name}"]\n\n`;
  };
  const all = '"read", "write", "lease", "lock", "observe", "operate"';
  writeFileSync(file, table("ann", "the-right-token", all) + table("bob", "the-other-token", '"read", "write"'));
  writeFileSync(member.config, `${readFileSync(member.config)}\n[auth]\ntokens = "${file}"\n`);
  member.start();
  members.push(member);
  await until("the node with tokens", async () => (await member.ask("/readyz")).ok);
  forgiven = /status of 401/;
  const page = await open(`${member.base}/ui`);
  await page.locator("#sign-in").waitFor();
  must(await page.evaluate(() => document.activeElement.id === "token"), "the focus is not on the token");
  await picture(page, "sign-in", false);
  await accessible(page, "sign-in");
  await page.keyboard.type("a wrong one");
  await page.keyboard.press("Enter");
  await shows(page, "#sign-in-state", "does not know this token");
  await page.keyboard.type("the-right-token");
  await page.keyboard.press("Enter");
  await page.locator("#sign-in").waitFor({ state: "hidden" });
  forgiven = null;
  await shows(page, memberRow(4), "leader");
  await page.click("#watch-start");
  await shows(page, "#watch-state", "Watching all keys");
  await page.click("#keys-new");
  await page.fill("#edit-key", "with/token");
  await page.fill("#edit-value", "yes");
  await page.click(".editor button.main");
  await shows(page, "#watch-table tbody tr", "with/token");
  // The tab remembers, and forgets when it is told to.
  await page.reload({ waitUntil: "load" });
  await shows(page, memberRow(4), "leader");
  forgiven = /status of 401/;
  await page.click("#sign-out");
  await page.locator("#sign-in").waitFor();
  equal(await page.evaluate(() => sessionStorage.length), 0, "what the tab remembers");
  await counts(page, "#members-table tbody tr", 0, "members shown to a stranger");
  // Who may see keys alone is told that, and not that the node is silent.
  forgiven = /status of 40[13]/;
  await page.fill("#token", "the-other-token");
  await page.keyboard.press("Enter");
  await shows(page, "#lost", "This token may not see the cluster");
  await shows(page, "#keys-list li", "with/");
  await picture(page, "forbidden");
  await accessible(page, "forbidden");
  await page.click("text=Use another token");
  await page.keyboard.type("the-right-token");
  await page.keyboard.press("Enter");
  await page.locator("#lost").waitFor({ state: "hidden" });
  await shows(page, memberRow(4), "leader");
  forgiven = null;
  await page.close();
}

async function run() {
  for (const member of members) member.start();
  const leader = await leaderOf(members);
  const [here, other] = members.filter((member) => member !== leader);
  await makeKeys(leader);
  const page = await open(`${here.base}/ui`);
  const steps = {
    overview: () => overview(page, leader, here),
    "leadership by the button": () => makeLeader(page, here),
    load: () => load(page, here),
    "keyboard alone": () => byKeyboard(page),
    pages: () => pages(page),
    "any bytes": () => oddBytes(page, here),
    "create and edit": () => life(page, other),
    conflict: () => conflict(page, other),
    history: () => past(page),
    delete: () => remove(page, other),
    "the same value": () => sameValue(page, other),
    watch: () => watching(page, other),
    "light, dark, narrow": () => looks(page),
    "its node dies": () => lost(page, here),
    "the leader dies": async () => {
      const now = await leaderOf(members);
      const witness = members.find((member) => member !== now);
      if (witness !== here) {
        await page.close();
        const another = await open(`${witness.base}/ui`);
        await another.locator(memberRow(3)).waitFor();
        return leaderDies(another, now, witness);
      }
      return leaderDies(page, now, witness);
    },
    "behind a balancer": () => balanced(members[0], members[1]),
    docs: () => docs(members[0]),
    tokens,
  };
  for (const [name, step] of Object.entries(steps)) {
    try {
      await step();
      console.log(`ok: ${name}`);
    } catch (error) {
      const open = context.pages().at(-1);
      await picture(open, "failed").catch(() => {});
      problems.push(`${name}: ${error.stack}`);
      break;
    }
  }
}

try {
  await run();
} catch (error) {
  problems.push(error.stack);
} finally {
  await context.close();
  for (const member of members) if (member.child?.exitCode === null) await member.kill();
}
for (const problem of problems) console.error(`ui: ${problem}`);
process.exit(problems.length ? 1 : 0);
