// Requests to this node. What it refuses is a Problem, as it says; silence is Unreachable.
// Who asks is kept for as long as the tab is open.

import { percent } from "./bytes.js";

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `status ${status}`);
    this.status = status;
    this.body = body;
  }
}

export class Unreachable extends Error {}

const TOKEN = "mmapd-token";

export const token = () => sessionStorage.getItem(TOKEN);

export function signIn(given) {
  sessionStorage.setItem(TOKEN, given);
}

export function signOut() {
  sessionStorage.removeItem(TOKEN);
}

// Is it said that nobody knows who asks?
export function isStranger(error) {
  return error instanceof Problem && error.status === 401;
}

// Is it said that who asks may not?
export function isForbidden(error) {
  return error instanceof Problem && error.status === 403;
}

// fetch, with who asks.
function send(path, { headers, ...given }) {
  const who = token() === null ? {} : { Authorization: `Bearer ${token()}` };
  return fetch(path, { cache: "no-store", redirect: "error", ...given, headers: { ...headers, ...who } });
}

function refusal(response, text) {
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // Something between us and the node said it in its own words.
  }
  const problem = new Problem(response.status, body);
  if (isStranger(problem)) document.dispatchEvent(new CustomEvent("stranger", { detail: problem }));
  return problem;
}

// Messages of a stream of Server-Sent Events, until it ends: an EventSource cannot say who asks.
export async function* messages(path, signal) {
  const response = await send(path, { headers: { Accept: "text/event-stream" }, signal });
  if (!response.ok) throw refusal(response, await response.text());
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let [event, data] = ["", []];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("event:")) event = line.slice(6).trim();
      else if (line.startsWith("data:")) data.push(line.slice(5).trim());
      else if (line === "" && event) {
        yield { event, data: data.length ? JSON.parse(data.join("\n")) : null };
        [event, data] = ["", []];
      }
    }
  }
}

export async function ask(path, { timeout = 10_000, ...given } = {}) {
  let response;
  let text;
  try {
    const signal = AbortSignal.timeout(timeout);
    response = await send(path, { ...given, signal });
    text = await response.text();
  } catch (error) {
    throw new Unreachable(error.name === "TimeoutError" ? "no answer in time" : "no connection");
  }
  if (response.ok) return { response, text };
  throw refusal(response, text);
}

export async function json(path, given) {
  return JSON.parse((await ask(path, given)).text);
}

// `.` and `..` are no parts of a path that a browser would ask for.
export function canBeAsked(key) {
  const name = percent(key);
  return name !== "." && name !== "..";
}

export function keyPath(key) {
  return `/v1/keys/${percent(key)}`;
}

// A key with its value and all that is known of it.
export function getKey(key) {
  return json(keyPath(key), { headers: { Accept: "application/json" }, timeout: 30_000 });
}

// What the reader should know about a request that failed.
export function explain(error) {
  if (error instanceof Unreachable) return `The node does not answer (${error.message}).`;
  if (error instanceof Problem) return `${error.message} (${error.status} ${error.body.code ?? ""})`;
  // A bug of this page, or something between us and the node that is no node.
  console.error(error);
  return `This page failed (${error}).`;
}

// May a write have happened although it was not acknowledged?
export function isUnknown(error) {
  return error instanceof Unreachable || (error instanceof Problem && error.body.outcome !== "not_applied");
}
