"""Figures for a page and a paper: matplotlib without its global state."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from megaqk.studies.series import Panel, Plot
from megaqk.studies.statistics import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, told apart by whoever is colour blind; without their yellow, which is faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")
# More than these hide the lines.
_MOST_BANDS = 8
_COLUMNS = 2
_DPI = 160

Look = tuple[str, str]


def looks(arms: Sequence[str], comparisons: Mapping[str, str]) -> dict[str, Look]:
    """Colour and kind of line of every arm, and of comparisons that of the arm they are about.

    Args:
        arms: In the order of the study.
        comparisons: Their names, and the first arm of each; its further ones take other kinds of line.
    """
    # Both change with every arm: lines that lie on one another are seen, and so they are in black and white.
    found = {arm: (_COLOURS[index % len(_COLOURS)], _STYLES[index % len(_STYLES)]) for index, arm in enumerate(arms)}
    used: dict[str, int] = {}
    own = dict(found)
    for name, arm in comparisons.items():
        colour, style = own[arm]
        found[name] = colour, _STYLES[(_STYLES.index(style) + used.get(arm, 0)) % len(_STYLES)]
        used[arm] = used.get(arm, 0) + 1
    return found


def draw_plot(plot: Plot, look: Mapping[str, Look]) -> "Figure":
    """Draw panels with bands, and one legend for all."""
    # Half a second to import, for the report alone.
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    columns = min(_COLUMNS, len(plot.panels))
    rows = -(-len(plot.panels) // columns)
    names = list(dict.fromkeys(name for panel in plot.panels for name in panel.bands))
    figure = Figure(figsize=(4.2 * columns + (0.8 if columns == 1 else 0), 2.9 * rows + 0.4), layout="constrained")
    for axes, panel in zip(figure.subplots(rows, columns, squeeze=False).flat, plot.panels, strict=False):
        _draw_panel(axes, panel, look)
        axes.set_xlabel(plot.x, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in figure.axes[len(plot.panels) :]:
        axes.remove()
    handles = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=min(len(names), 3), fontsize=8
    )
    return figure


def draw_differences(differences: Mapping[str, Difference], look: Mapping[str, Look]) -> "Figure":
    """Draw the differences of the final loss: every pair, the mean, its 95 % t interval and the corrected one."""
    from matplotlib.figure import Figure

    known = {name: one for name, one in differences.items() if one.n}
    figure = Figure(figsize=(7.2, 1.1 + 0.45 * len(known)), layout="constrained")
    axes = figure.subplots()
    for row, (name, one) in enumerate(known.items()):
        colour = look[name][0]
        values = [value for value in one.by_seed.values() if value is not None]
        axes.plot(values, [row + 0.22] * one.n, "o", color=colour, markersize=3, alpha=0.5)
        for interval, width in ((one.simultaneous_interval, 1.2), (one.t_interval, 3.6)):
            if interval:
                axes.plot(interval, [row, row], color=colour, linewidth=width, solid_capstyle="butt")
        axes.plot([one.mean or 0.0], [row], "D", color=colour, markeredgecolor="white", markersize=6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(known)), list(known))
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_xlabel("difference of the final validation loss (nats per token)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def png(figure: "Figure") -> bytes:
    """For pages."""
    return _saved(figure, "png")


def pdf(figure: "Figure") -> bytes:
    """For papers."""
    return _saved(figure, "pdf")


def _saved(figure: "Figure", form: str) -> bytes:
    stream = io.BytesIO()
    # Without a date the same numbers give the same file.
    figure.savefig(stream, format=form, dpi=_DPI, metadata={"CreationDate": None} if form == "pdf" else None)
    return stream.getvalue()


def _draw_panel(axes: "Axes", panel: Panel, look: Mapping[str, Look]) -> None:
    for name, band in panel.bands.items():
        colour, style = look[name]
        marker = "o" if len(band.x) < 15 else None
        axes.plot(band.x, band.mean, style, color=colour, label=name, linewidth=1.4, marker=marker, markersize=3)
        if len(panel.bands) <= _MOST_BANDS:
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    late = [
        high for band in panel.bands.values() for x, high in zip(band.x, band.high, strict=True) if x >= band.x[-1] / 10
    ]
    if panel.zoomed and len(set(late)) > 1:
        low = min(min(band.low) for band in panel.bands.values())
        room = 0.05 * (max(late) - low)
        axes.set_ylim(low - room, max(late) + room)
    if panel.log:
        axes.set_yscale("log")
    elif any(band.low and min(band.low) < 0 < max(band.high) for band in panel.bands.values()):
        axes.axhline(0, color="black", linewidth=0.8)
    axes.set_title(panel.title, fontsize=9)
    axes.set_ylabel(panel.y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
