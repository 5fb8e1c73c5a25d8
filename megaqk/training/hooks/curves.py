"""The curves of a run as one picture, for whoever has no TensorBoard at hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaqk.errors import UserError
from megaqk.runtime.files import written_whole
from megaqk.training.metrics import METRICS_FILE, read_metrics
from megaqk.training.trainer import Hook, Trainer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More names than this make a legend that hides the curves; a colour bar's worth of layers needs none.
_LEGEND_ENTRIES = 12


class Curves(Hook):
    """Draws `curves.png` at the end."""

    def end(self, run: Trainer) -> None:
        """Draw on rank 0; the records are on disk by then."""
        if run.world.rank == 0 and (run.run_dir / METRICS_FILE).exists():
            picture = run.run_dir / "curves.png"
            write_curves(run.run_dir / METRICS_FILE, picture)
            run.log.info("curves: %s", picture)


def write_curves(metrics_path: Path, png_path: Path) -> None:
    """Draw loss, learning rate and multiplier over steps from a `metrics.jsonl`.

    Args:
        metrics_path: The records of a run.
        png_path: The picture to write; its folder must exist.

    Raises:
        UserError: There are no records to draw, or the picture cannot be written.
    """
    # Half a second to import, and no other part of the program needs it. The Figure class draws without a display and
    # without matplotlib's global state.
    from matplotlib.figure import Figure

    records = list(read_metrics(metrics_path))
    if not records:
        raise UserError(f"{metrics_path}: no records yet; there is nothing to draw")
    figure = Figure(figsize=(8.0, 9.0), layout="constrained")
    loss, rate, multiplier = figure.subplots(3, 1, sharex=True)
    sets = {name: label.removesuffix("/loss") for name, label in _groups(records, "valid/").items() if "/loss" in label}
    _draw(loss, records, {"loss": "training", "valid_loss": "validation", **sets})
    _draw(rate, records, _groups(records, "lr/"))
    _draw(multiplier, records, _groups(records, "multiplier/"))
    loss.set_ylabel("loss (nats per token)")
    rate.set_ylabel("learning rate")
    multiplier.set_ylabel("multiplier")
    multiplier.set_ylim(bottom=min(0.0, multiplier.get_ylim()[0]))
    multiplier.set_xlabel("step")
    with written_whole(png_path) as beside:
        figure.savefig(beside, dpi=120, format="png")


def _groups(records: Sequence[dict[str, Any]], prefix: str) -> dict[str, str]:
    """Metric names with a prefix, in order of appearance, each with the name of its group."""
    return {name: name.removeprefix(prefix) for record in records for name in record if name.startswith(prefix)}


def _draw(axes: "Axes", records: Sequence[dict[str, Any]], names: dict[str, str]) -> None:
    """Draw some metrics against the step; a value that was not finite leaves a gap."""
    from matplotlib import colormaps

    # Most groups share one schedule: what would lie exactly under another curve shares its line and its name.
    curves: dict[tuple[tuple[int, Any], ...], list[str]] = {}
    for name, label in names.items():
        points = tuple((record["step"], record[name]) for record in records if name in record)
        if points:
            curves.setdefault(points, []).append(label)
    many = len(curves) > _LEGEND_ENTRIES
    colours = colormaps["viridis" if many else "tab10"]
    for index, (points, labels) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        axes.plot(
            steps,
            [float("nan") if value is None else value for value in values],
            label=", ".join(labels),
            color=colours(index / len(curves) if many else index % 10),
            linewidth=1.4,
            # One point alone would draw nothing.
            marker="o" if len(points) < 30 else None,
            markersize=3,
        )
    if curves and not many:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
