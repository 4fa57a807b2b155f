// The text that Prometheus reads, and what two of them at different times tell together.

const LINE = /^([a-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/i;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

export class Scrape {
  constructor(text, time) {
    this.time = time;
    this.series = new Map();
    for (const line of text.split("\n")) {
      const found = LINE.exec(line);
      if (!found) continue;
      const [, name, labels = "", value] = found;
      const of = Object.fromEntries(Array.from(labels.matchAll(LABEL), (one) => [one[1], one[2]]));
      if (!this.series.has(name)) this.series.set(name, []);
      this.series.get(name).push({ of, value: Number(value) });
    }
  }

  // The sum of all series that `wanted` takes; null when there is none.
  sum(name, wanted = () => true) {
    const found = (this.series.get(name) ?? []).filter(({ of }) => wanted(of));
    return found.length ? found.reduce((sum, { value }) => sum + value, 0) : null;
  }

  // Upper ends and how many were at most that.
  buckets(name, wanted = () => true) {
    const found = (this.series.get(`${name}_bucket`) ?? []).filter(({ of }) => wanted(of));
    return found.map(({ of, value }) => [of.le === "+Inf" ? Infinity : Number(of.le), value]);
  }
}

// How much a counter grew in a second; null over a restart of the node.
export function rate(before, after, name, wanted) {
  const time = (after.time - before.time) / 1000;
  const grown = (after.sum(name, wanted) ?? 0) - (before.sum(name, wanted) ?? 0);
  return time > 0 && grown >= 0 ? grown / time : null;
}

// Below which time that part of what happened in between stayed; null when nothing did.
export function quantile(part, before, after, name, wanted) {
  const old = new Map(before.buckets(name, wanted));
  const grown = after.buckets(name, wanted).map(([end, many]) => [end, many - (old.get(end) ?? 0)]);
  const all = grown.length ? grown[grown.length - 1][1] : 0;
  if (all <= 0 || grown.some(([, many]) => many < 0)) return null;
  let [low, below] = [0, 0];
  for (const [end, many] of grown) {
    if (many >= part * all) {
      if (end === Infinity) return Infinity;
      return low + ((end - low) * (part * all - below)) / (many - below || 1);
    }
    [low, below] = [end, many];
  }
  return null;
}

// The newest scrape that is at least so old, or the oldest one.
export function sinceAbout(scrapes, ms) {
  const now = scrapes[scrapes.length - 1].time;
  return scrapes.findLast((scrape) => now - scrape.time >= ms) ?? scrapes[0];
}
