"""The mean regret of each strategy against the number of evaluations, as an SVG picture that stands alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from npas_cli.charts import BOTTOM, RIGHT, TOP, WIDTH, Axis, across, frame, polyline, rule, steps, text

HEIGHT = 380
MOST = 8.0  # percent: what lies above is cut off
COLOURS = ("#0b62c4", "#d9480f", "#2b8a3e", "#862e9c", "#e64980", "#8d6e63", "#94b400", "#f59f00", "#495057", "#15aabf")
STYLE = (
    "text { font: 12.5px system-ui, sans-serif; fill: #444; } .tick { font-size: 11.5px; } .grid { stroke: #e6e6e6; } .axis { stroke: #888; } .line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }"
)


def chart(curves: Mapping[str, Sequence[float]]) -> str:
    """``curves``: for each strategy the regret (a share) after 1, 2 ... evaluations."""
    x = across(0, max(len(curve) for curve in curves.values()))
    y = Axis(0, MOST, HEIGHT - BOTTOM, TOP)
    body = frame(x, y, "evaluations", "mean regret, %", whole=True)
    style, key = STYLE, [f'<rect x="{WIDTH - 158}" y="{TOP}" width="{158 - RIGHT}" height="{17 * len(curves) + 6}" fill="#fff"/>']
    for k, (name, curve) in enumerate(curves.items()):
        style += f" .c{k} {{ stroke: {COLOURS[k % len(COLOURS)]}; }}"
        seen = [(n, 100 * regret) for n, regret in enumerate(curve, 1) if 100 * regret <= MOST]
        turns = [point for i, point in enumerate(seen) if i in (0, len(seen) - 1) or point[1] != seen[i - 1][1]]
        body.append(polyline([(x(n), y(percent)) for n, percent in steps(turns)], f"c{k}"))
        row = TOP + 14 + 17 * k
        key += [rule(WIDTH - 150, row - 4, WIDTH - 122, row - 4, f"line c{k}"), text(WIDTH - 114, row, name)]
    paper = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"><style>{style}</style>{paper}{"".join([*body, *key])}</svg>\n'
