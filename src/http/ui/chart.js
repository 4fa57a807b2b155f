// Lines over the last five minutes, drawn as SVG. What they say stands below them as text.

import { h, setText, svg } from "./dom.js";

const SPAN = 300_000;
const HEIGHT = 150;
const EDGE = { left: 58, right: 8, top: 8, bottom: 22 };
// A longer silence is a hole in the line.
const HOLE = 3500;

export class Chart {
  // `lines`: [{ name, style }], style being a class of style.css.
  constructor(host, { title, note, show, lines }) {
    this.show = show;
    this.lines = lines;
    this.title = title;
    this.points = [];
    this.picture = svg("svg", { role: "img", height: HEIGHT, class: "chart" });
    this.note = h("span", { className: "note" }, note);
    this.legend = lines.map((line) => {
      const value = h("strong", {}, "\u2013");
      const sample = svg("svg", { width: 22, height: 8, "aria-hidden": "true" });
      sample.append(svg("line", { x1: 1, x2: 21, y1: 4, y2: 4, class: `line ${line.style}` }));
      return { value, item: h("span", { className: "legend" }, sample, ` ${line.name} `, value) };
    });
    const values = h("div", { className: "values" }, ...this.legend.map(({ item }) => item));
    host.append(h("figcaption", {}, h("h3", {}, title), this.note), this.picture, values);
    new ResizeObserver(() => this.draw()).observe(host);
  }

  // One value for each line, null where there is none.
  add(time, values) {
    this.points.push({ time, values });
    this.points = this.points.filter((point) => time - point.time <= SPAN);
    this.draw();
  }

  // What comes next is of something else.
  clear() {
    this.points = [];
    this.draw();
  }

  draw() {
    const width = Math.round(this.picture.getBoundingClientRect().width);
    if (!width) return;
    const now = this.points.length ? this.points[this.points.length - 1].time : 0;
    const finite = this.points.flatMap((point) => point.values).filter(Number.isFinite);
    const top = finite.length ? roundUp(Math.max(...finite)) : 0;
    const x = (time) => width - EDGE.right - ((now - time) / SPAN) * (width - EDGE.left - EDGE.right);
    const y = (value) => HEIGHT - EDGE.bottom - (Math.min(value, top) / (top || 1)) * (HEIGHT - EDGE.top - EDGE.bottom);
    this.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.picture.replaceChildren(...this.axes(width, top, y), ...this.paths(x, y));
    const last = this.points.length ? this.points[this.points.length - 1].values : [];
    this.legend.forEach(({ value }, at) => setText(value, this.show(last[at])));
    const said = this.lines.map((line, at) => `${line.name} ${this.show(last[at])}`);
    this.picture.setAttribute("aria-label", `${this.title}, last five minutes; now ${said.join(", ")}`);
  }

  axes(width, top, y) {
    const parts = [];
    for (const value of top ? [0, top / 2, top] : [0]) {
      parts.push(
        svg("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
        svg("text", { class: "tick", x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, this.show(value)),
      );
    }
    const room = width - EDGE.left - EDGE.right;
    const times = [["5 min ago", 0, "start"], ["2.5 min", 0.5, "middle"], ["now", 1, "end"]];
    for (const [text, at, anchor] of times) {
      const given = { class: "tick", x: EDGE.left + at * room, y: HEIGHT - 5, "text-anchor": anchor };
      parts.push(svg("text", given, text));
    }
    if (!top) {
      const given = { class: "tick", x: EDGE.left + room / 2, y: HEIGHT / 2, "text-anchor": "middle" };
      parts.push(svg("text", given, "nothing yet"));
    }
    return parts;
  }

  paths(x, y) {
    return this.lines.flatMap((line, at) => {
      let path = "";
      let before = null;
      const dots = [];
      this.points.forEach((point, place) => {
        const value = point.values[at];
        if (value === null || value === undefined) return;
        const joined = before !== null && place - before.place === 1 && point.time - before.time < HOLE;
        const where = `${x(point.time).toFixed(1)} ${y(value).toFixed(1)}`;
        path += joined ? `L${where}` : `M${where}`;
        const next = this.points[place + 1]?.values[at];
        // A point without a neighbour would not be seen.
        if (!joined && (next === null || next === undefined)) {
          dots.push(svg("circle", { class: `dot ${line.style}`, cx: x(point.time), cy: y(value), r: 1.8 }));
        }
        before = { place, time: point.time };
      });
      return [svg("path", { class: `line ${line.style}`, d: path }), ...dots];
    });
  }
}

// 1, 2 or 5 times a power of ten.
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}
