"""Draws docs/method.svg, the method in one picture: `python docs/method_picture.py`. Readable in light and dark."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

FILE = Path(__file__).with_name("method.svg")
WIDTH, HEIGHT = 960, 562
COLOURS = {  # name: light, dark
    "back": ("#ffffff", "#14171f"),
    "ink": ("#1b2230", "#e8ebf2"),
    "quiet": ("#56607a", "#a6afc4"),
    "line": ("#8792ab", "#77819b"),
    "panel": ("#f3f5fa", "#1d2230"),
    "value": ("#ffe1a8", "#6b4b0e"),
    "state": ("#cfe3ff", "#1f406f"),
    "action": ("#ffd3cc", "#70302a"),
    "block": ("#e2dcfa", "#3b3168"),
    "control": ("#cdeedd", "#1d5140"),
}


def style() -> str:
    """Colours for both schemes, as CSS variables."""
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in COLOURS.items()) for i in (0, 1))
    fills = "".join(f".{name}{{fill:var(--{name})}}" for name in COLOURS)
    return dedent(f"""\
        <style>
        svg{{{light};font-family:system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif}}
        @media (prefers-color-scheme:dark){{svg{{{dark}}}}}
        {fills}
        text{{fill:var(--ink);font-size:15px;text-anchor:middle}}
        .small{{fill:var(--quiet);font-size:13px}}
        .title{{font-size:16px;font-weight:600;text-anchor:start}}
        .box{{stroke:var(--line);stroke-width:1}}
        .arrow{{stroke:var(--line);stroke-width:1.6;fill:none;marker-end:url(#tip)}}
        .dashed{{stroke-dasharray:5 4}}
        .tip{{fill:var(--line)}}
        </style>
        <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
        <path class="tip" d="M0 0 L8 4 L0 8 z"/></marker></defs>""")


def box(x: float, y: float, width: float, height: float, kind: str, *lines: str, squeeze: bool = False) -> str:
    """A rounded box with centred lines of text, the first of them large; ``squeeze`` puts them closer together."""
    drawn = [f'<rect class="{kind} box" x="{x}" y="{y}" width="{width}" height="{height}" rx="7"/>']
    for number, line in enumerate(lines):
        at = y + height / 2 + 5 + (17 if squeeze else 21) * (number - (len(lines) - 1) / 2)
        drawn.append(text(x + width / 2, at, line, "small" if number else ""))
    return "\n".join(drawn)


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """One line of text."""
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x:g}" y="{y:g}">{words}</text>'


def arrow(path: str, dashed: bool = False) -> str:
    """An arrow along an SVG path."""
    return f'<path class="arrow{" dashed" if dashed else ""}" d="{path}"/>'


def critic() -> list[str]:
    """Tokens, transformer with entropy control, values."""
    parts = [box(10, 10, 940, 346, "panel"), text(28, 40, "Critic: every scalar is a token", "title")]
    tokens = [("value", "[VALUE]"), *(("state", f"s{i}") for i in "₁₂₃"), *(("action", f"a{i}") for i in "₁₂")]
    for number, (kind, name) in enumerate(tokens):
        y = 62 + 34 * number
        parts += [box(150, y, 84, 26, kind, name), arrow(f"M234 {y + 13} H266")]
    parts += [text(82, 140, "observation s"), text(82, 226, "action a")]
    for x, name in ((268, "Block 1"), (458, "Block 2")):
        parts.append(box(x, 62, 150, 196, "block", name, "attention,", "feed-forward layer"))
        parts.append(box(x - 12, 298, 174, 46, "control", "temperature α", "keeps H near its target", squeeze=True))
        parts += [arrow(f"M{x + 40} 258 V296"), arrow(f"M{x + 122} 298 V260")]
        parts.append(text(x + 80, 282, "entropy H", "small"))
    parts += [arrow("M418 160 H456"), arrow("M608 160 H650")]
    parts.append(box(652, 136, 100, 48, "value", "[VALUE]"))
    for y, name in ((104, "Q₁(s, a)"), (178, "Q₂(s, a)")):
        parts += [arrow(f"M752 160 L796 {y + 19}"), box(798, y, 126, 38, "panel", name)]
    parts.append(text(788, 254, "TD loss: (Q − y)²,  y = r + γ Q̄(s′, μ(s′, z′))", "small"))
    parts.append(text(788, 302, "Without control the entropy of attention falls", "small"))
    parts.append(text(788, 322, "as the critic grows wider: attention collapses.", "small"))
    return parts


def policy() -> list[str]:
    """Behaviour flow, distilled into one step that also raises Q."""
    return [
        box(10, 366, 940, 186, "panel"),
        text(28, 396, "Policy: a flow distilled into one step", "title"),
        box(28, 452, 168, 50, "state", "noise z", "and observation s", squeeze=True),
        arrow("M196 468 C226 444 232 436 266 436"),
        arrow("M196 488 C226 510 232 516 266 516"),
        box(268, 410, 240, 50, "block", "behaviour flow v(s, xₜ, t)", "imitates the data, in 10 steps", squeeze=True),
        box(268, 490, 240, 50, "action", "one-step policy μ(s, z)", "acts", squeeze=True),
        arrow("M388 460 V488", dashed=True),
        text(436, 480, "distilled", "small"),
        arrow("M508 515 H650"),
        box(652, 490, 150, 50, "value", "Q(s, μ(s, z))", "is raised", squeeze=True),
        arrow("M727 358 V488", dashed=True),
        text(800, 436, "the critic's values", "small"),
    ]


def picture() -> str:
    """The whole SVG."""
    title = "TQL: tokens, transformer with entropy control, values; a flow policy distilled into one step"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
    back = f'<rect class="back" width="{WIDTH}" height="{HEIGHT}" rx="12"/>'
    return "\n".join([head, f"<title>{title}</title>", style(), back, *critic(), *policy(), "</svg>\n"])


if __name__ == "__main__":
    FILE.write_text(picture())
