"""The ratios as horizontal bars on a logarithmic axis, as SVG."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

from tests.bench.figures import ratio
from tests.bench.report import Report
from tests.bench.run import rows_of

LEFT, WIDTH, BAR, TOP = 210, 620, 14, 60
DECADES = (-2.0, 1.0)
COLOURS = ("#1f6feb", "#8250df", "#1a7f37", "#bf8700", "#cf222e", "#6e7781", "#0a7ea4", "#999999")


def _x(value: float) -> float:
    low, high = DECADES
    position = (math.log10(max(value, 10**low)) - low) / (high - low)
    return LEFT + WIDTH * min(1.0, position)


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {extra}>{escape(text)}</text>'


def _axis(height: float) -> list[str]:
    parts = []
    for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10):
        x, colour = _x(tick), "#333" if tick == 1 else "#ddd"
        parts.append(f'<path d="M{x:.1f} {TOP - 8}V{height:.1f}" stroke="{colour}"/>')
        parts.append(_text(x, TOP - 12, f"{tick:g}", 'text-anchor="middle" fill="#555"'))
    return parts


def draw(report: Report) -> str:
    """Return the SVG: cost relative to the peer, so that shorter is better in every row."""
    # Ours and the kernel's: more bars would hide what they are for.
    names = [one.name for one in report.systems if one.is_ours or one.kind == "kernel"]
    names = [name for name in names if name != report.peer]
    parts: list[str] = []
    y = float(TOP)
    mode = next(iter(report.results.values), "free")
    for _, row in rows_of(report.scenarios):
        found = [(n, ratio(report.results, mode, row.name, n, report.peer)) for n in names]
        bars = [(n, 1 / r if row.higher else r) for n, r in found if r]
        if not bars:
            continue
        parts.append(_text(LEFT - 8, y + BAR, row.name, 'text-anchor="end"'))
        for name, value in bars:
            parts.append(_bar(y, name, value, COLOURS[names.index(name) % len(COLOURS)]))
            y += BAR * 0.75
        y += BAR * 0.6
    title = f"time or cost relative to {report.peer} = 1 ({mode}); shorter is better"
    legend = [
        f'<text x="{8 + index * 140}" y="34" fill="{COLOURS[index % len(COLOURS)]}">'
        f"■ {escape(name)}</text>"
        for index, name in enumerate(names)
    ]
    body = [_text(8, 16, title, 'font-weight="bold"'), *legend, *_axis(y), *parts]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 80}" '
        f'height="{y + 12:.0f}" font-family="sans-serif" font-size="11">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _bar(y: float, name: str, value: float, colour: str) -> str:
    one, end = _x(1.0), _x(value)
    left, width = min(one, end), abs(end - one)
    label = _text(max(one, end) + 3, y + 8, f"{value:.2f}", f'font-size="8" fill="{colour}"')
    return (
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(width, 1.0):.1f}" height="{BAR * 0.6:.1f}" '
        f'fill="{colour}"><title>{escape(name)} {value:.3f}</title></rect>{label}'
    )
