"""The ratios as a picture: one panel for each operation and number of nodes."""

import math
import statistics
from xml.sax.saxutils import escape

COLOURS = {"etcd-v2": "#3b6fb6", "etcd-v3-json": "#d9822b", "redis-always": "#8a4fa3"}
TITLES = {"put": "PUT", "get": "linearizable GET", "local": "local GET"}
WIDTH, HEIGHT, LEFT, TOP = 300, 200, 46, 34


def ratios(samples, connections):
    """How many times as fast as each peer mmapd is, on a logarithmic scale; the thick line is 1."""
    panels = [(nodes, what) for nodes in (1, 3) for what in TITLES]
    top = math.log2(max([2, *(one for values in found(samples).values() for one in values)])) + 0.2
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * (WIDTH + LEFT) + 20}" '
           f'height="{2 * (HEIGHT + TOP + 40) + 40}" font-family="sans-serif" font-size="12">',
           '<rect width="100%" height="100%" fill="white"/>']
    for place, (nodes, what) in enumerate(panels):
        x0, y0 = LEFT + place % 3 * (WIDTH + LEFT), TOP + place // 3 * (HEIGHT + TOP + 40)
        out += panel(samples, connections, nodes, what, x0, y0, top)
    for number, (name, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + number * 170, 2 * (HEIGHT + TOP + 40) + 20
        out.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
                   f'<text x="{x + 18}" y="{y}">mmapd to {escape(name)}</text>')
    return "\n".join([*out, "</svg>", ""])


def found(samples):
    """Ratios of the medians, by nodes, operation, connections."""
    result = {}
    for (nodes, what, count, name), theirs in samples.items():
        if name in COLOURS:
            ours = samples[nodes, what, count, "mmapd"]
            ratio = statistics.median(one.rate for one in ours) / statistics.median(one.rate for one in theirs)
            result.setdefault((nodes, what, count), []).append(ratio)
    return result


def panel(samples, connections, nodes, what, x0, y0, top):
    low = -2

    def y(ratio):
        return y0 + HEIGHT * (1 - (max(low, math.log2(ratio)) - low) / (top - low))

    yield f'<text x="{x0}" y="{y0 - 10}" font-weight="bold">{TITLES[what]}, {nodes} node{"s" * (nodes > 1)}</text>'
    for power in range(low, int(top) + 1):
        width = 2 if power == 0 else 0.5
        yield (f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y(2 ** power):.1f}" y2="{y(2 ** power):.1f}" stroke="#888" '
               f'stroke-width="{width}"/><text x="{x0 - 6}" y="{y(2 ** power) + 4:.1f}" text-anchor="end">{2 ** power:g}</text>')
    peers = [name for name in COLOURS if any((nodes, what, c, name) in samples for c in connections)]
    step = WIDTH / len(connections)
    for at, count in enumerate(connections):
        yield f'<text x="{x0 + step * (at + 0.5):.1f}" y="{y0 + HEIGHT + 16}" text-anchor="middle">{count}</text>'
        for number, name in enumerate(peers):
            ours, theirs = samples[nodes, what, count, "mmapd"], samples[nodes, what, count, name]
            ratio = statistics.median(one.rate for one in ours) / statistics.median(one.rate for one in theirs)
            width = step * 0.8 / len(peers)
            x, a, b = x0 + step * at + step * 0.1 + number * width, y(ratio), y(1)
            yield (f'<rect x="{x:.1f}" y="{min(a, b):.1f}" width="{width * 0.9:.1f}" height="{max(1, abs(a - b)):.1f}" '
                   f'fill="{COLOURS[name]}"><title>{ratio:.2f}</title></rect>')
            yield (f'<text x="{x + width * 0.45:.1f}" y="{min(a, b) - 3:.1f}" text-anchor="middle" font-size="9">'
                   f'{ratio:.1f}</text>')
    yield (f'<text x="{x0 + WIDTH / 2}" y="{y0 + HEIGHT + 32}" text-anchor="middle" fill="#555">connections</text>')
