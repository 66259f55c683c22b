"""Curves as SVG that takes its colours from the page, so that it suits light and dark."""

import io
import re
from itertools import accumulate

# what is drawn in these colours takes those of the page
_COLOURS = {
    "#010203": "var(--muted)",
    "#040506": "var(--grid)",
    "#070809": "var(--curve)",
    "#0a0b0c": "var(--raw)",
    "#0d0e0f": "var(--second)",
}
MUTED, GRID, CURVE, RAW, SECOND = _COLOURS
FEWEST = 20  # points that are smoothed
UPDATES = "UPDATES"  # the page puts the words of both languages in its place


def smoothed(values):
    """Return the mean of each value (list[float]) and its neighbours, fewer at the ends, and of how many (int); as it is and 1 where there
    are few values."""
    if len(values) < FEWEST:
        return list(values), 1
    reach = max(2, len(values) // 30)
    sums = [0.0, *accumulate(values)]
    windows = [(max(0, place - reach), min(len(values), place + reach + 1)) for place in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in windows], 2 * reach + 1


def curve(updates, values, name, smooth=False, size=(4.6, 2.6), second=None, percent=False):
    """Draw one figure over the updates.

    Args:
        updates (list[float]): where.
        values (list[float]): what.
        name (str): unique on the page.
        smooth (bool): draw the smoothed values too. Defaults to False.
        size (tuple[float, float]): in inches, of which the page makes what it has room for.
        second (list[float], optional): another curve over the same updates.
        percent (bool): whether the values are shares.

    Returns:
        str: an `<svg>`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    options = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10, "axes.formatter.limits": (-3, 5), "axes.edgecolor": GRID}
    options.update(
        {"axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "text.color": MUTED, "font.family": "DejaVu Sans"}
    )
    with rc_context(options):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot(facecolor="none")
        if percent:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        style = dict(linewidth=2, solid_capstyle="round", solid_joinstyle="round")
        marker = "o" if len(values) < FEWEST else ""
        if second is not None:
            axes.plot(updates, second, color=SECOND, marker=marker, markersize=3.5, linestyle="--", linewidth=2)
        if smooth and len(values) >= FEWEST:
            axes.plot(updates, values, color=RAW, linewidth=0.8)
            axes.plot(updates, smoothed(values)[0], color=CURVE, **style)
        else:
            axes.plot(updates, values, color=CURVE, marker=marker, markersize=3.5, **style)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(UPDATES)
        axes.grid(color=GRID, linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_page(file.getvalue(), name)


def _for_page(svg, name):
    """Return an SVG file as an element of a page (str): its colours and words are the page's, its ids are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 aria-hidden="true"', svg, count=1)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px var(--font)", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    return svg.replace(UPDATES, '<tspan class="en">updates</tspan><tspan class="zh">更新次数</tspan>')
