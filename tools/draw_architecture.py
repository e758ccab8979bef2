"""Draws docs/images/architecture.svg: python tools/draw_architecture.py."""

from __future__ import annotations

from html import escape
from pathlib import Path

TARGET = Path(__file__).parents[1] / "docs" / "images" / "architecture.svg"

WIDTH, HEIGHT = 1000, 730
FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
INK, MUTED = "#1f2933", "#52606d"
DATA, STEP, STATE = "#e3f0fb", "#ffffff", "#fdf1dc"  # what flows, what is done, what is kept
LAYERS = ("#eef2f6", "#e3f0fb", "#e6f4ea", "#fdf1dc")


class Picture:
    """An SVG drawing, made of boxes, arrows and text."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, size: int = 14, *, bold: bool = False,
        colour: str = INK, anchor: str = "middle",
    ) -> None:  # fmt: skip
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{colour}" '
            f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def box(
        self, x: float, y: float, w: float, h: float, title: str, note: str = "",
        fill: str = STEP, stroke: str = INK,
    ) -> None:  # fmt: skip
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="6" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.2"/>'
        )
        middle, lines = x + w / 2, note.split("\n") if note else []
        top = y + h / 2 + 5 - 8 * len(lines)
        self.text(middle, top, title, bold=True)
        for i, line in enumerate(lines):
            self.text(middle, top + 17 + 15 * i, line, 12, colour=MUTED)

    def arrow(self, *points: tuple[float, float], dashed: bool = False) -> None:
        path = " L ".join(f"{x:g} {y:g}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="M {path}" fill="none" stroke="{INK}" stroke-width="1.5"{dash} '
            'marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        head = (
            '<marker id="head" markerWidth="9" markerHeight="8" refX="8" refY="4" orient="auto">'
            f'<path d="M 0 0 L 9 4 L 0 8 z" fill="{INK}"/></marker>'
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
                f'width="{WIDTH}" height="{HEIGHT}" font-family="{FONT}">',
                f"<defs>{head}</defs>",
                f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def draw_flow(p: Picture) -> None:
    """The upper half: a tensor on its way to the server, and the update on its way back."""
    p.text(20, 32, "Data flow", 18, bold=True, anchor="start")
    p.text(980, 32, "a link: one sender, one receiver", 13, colour=MUTED, anchor="end")

    y, h = 66, 62
    p.text(20, 56, "Sender (each client)", 13, colour=MUTED, anchor="start")
    p.box(20, y, 120, h, "tensor", "float, any shape", DATA)
    p.box(180, y, 150, h, "select", "top-k, random-k,\nall elements")
    p.box(370, y, 150, h, "values", "float32, ternary,\nsign, levels, polar")
    p.box(560, y, 150, h, "Packet", "indices, values,\nscale", DATA)
    p.box(750, y, 110, h, "pack", "to_bytes()")
    p.box(890, y, 90, h, "bytes", "", DATA)
    for x, to in ((140, 180), (330, 370), (520, 560), (710, 750), (860, 890)):
        p.arrow((x, y + h / 2), (to, y + h / 2))
    p.parts.append(
        f'<rect x="168" y="{y - 22:g}" width="364" height="{h + 32:g}" rx="8" fill="none" '
        f'stroke="{MUTED}" stroke-dasharray="2 3"/>'
    )
    p.text(350, y - 8, "codec", 13, colour=MUTED)
    p.box(180, 172, 340, 40, "residual: what the packet lacks", fill=STATE)
    p.arrow((480, y + h), (480, 172), dashed=True)
    p.arrow((220, 172), (220, y + h), dashed=True)

    p.arrow((935, y + h), (935, 262))
    p.text(925, 200, "network", 13, colour=MUTED, anchor="end")

    y = 262
    p.text(20, y - 10, "Receiver (server)", 13, colour=MUTED, anchor="start")
    p.box(890, y, 90, h, "m × bytes", "", DATA)
    p.box(750, y, 110, h, "unpack", "from_bytes()\nvalidates")
    p.box(560, y, 150, h, "m × Packet", "still compressed", DATA)
    p.box(260, y, 260, h, "aggregate", "combine, gram, project, vote,\ntrimmed mean")
    p.box(20, y, 200, h, "dense update", "float32", DATA)
    for x, to in ((890, 860), (750, 710), (560, 520), (260, 220)):
        p.arrow((x, y + h / 2), (to, y + h / 2))
    p.box(560, 346, 150, 34, "History", fill=STATE)
    p.arrow((560, 363), (390, 363), (390, y + h), dashed=True)
    p.arrow((635, y + h), (635, 346), dashed=True)
    p.arrow((120, y + h), (120, 363), (240, 363))
    p.text(248, 368, "down link", 13, colour=MUTED, anchor="start")


def draw_packages(p: Picture) -> None:
    """The lower half: packages, each row importing from the rows below it."""
    top = 424
    p.text(20, top, "Packages", 18, bold=True, anchor="start")
    rule = "each row uses the rows below it, never those above"
    p.text(980, top, rule, 13, colour=MUTED, anchor="end")
    rows: list[tuple[str, list[tuple[float, str, str]]]] = [
        (LAYERS[3], [(1, "fl, inspect, distributed", "command line: python -m gcext")]),
        (LAYERS[2], [(1, "_recipes, _links", "whole methods; one direction, with its memory")]),
        (
            LAYERS[1],
            [
                (0.45, "polar", "polar codes, and a codec of them"),
                (0.55, "aggregate", "sums, projection, votes, History"),
            ],
        ),
        (LAYERS[1], [(1, "_codecs, _spec", "selection and values; options as text")]),
        (LAYERS[1], [(1, "_packet", "Packet, value codes, deferred contents")]),
        (LAYERS[0], [(1, "_native", "loads the libraries; every operator with its types")]),
        (
            "#dde3ea",
            [
                (0.30, "csrc/wire", "bytes: _wire, no torch"),
                (0.35, "csrc", "CPU kernels: _ops.so"),
                (0.35, "cuda", "CUDA kernels: _cuda.so"),
            ],
        ),
    ]
    y, h, gap = top + 14, 36, 5
    for fill, row in rows:
        x = 20.0
        for share, name, note in row:
            w = 960 * share - (gap if x + 960 * share < 979 else 0)
            p.parts.append(
                f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h}" rx="5" fill="{fill}" '
                f'stroke="{MUTED}" stroke-width="1"/>'
            )
            p.parts.append(
                f'<text x="{x + w / 2:g}" y="{y + 23:g}" font-size="14" text-anchor="middle" '
                f'fill="{INK}"><tspan font-weight="bold">{escape(name)}</tspan>'
                f'<tspan dx="10" font-size="12" fill="{MUTED}">{escape(note)}</tspan></text>'
            )
            x += 960 * share
        y += h + gap


def draw() -> str:
    """Return the picture as SVG."""
    picture = Picture()
    draw_flow(picture)
    draw_packages(picture)
    return picture.svg()


if __name__ == "__main__":
    TARGET.write_text(draw())
