"""Which figures a report has, and what is drawn in them."""

from collections.abc import Callable, Iterator

from megaqk.studies.halves import HALVES, analysis_curve, pathwise_curve, probe_curve, sharpness_curve
from megaqk.studies.series import Panel, Plot, Points, binned, by_arm, by_comparison, deviation_band, log_band
from megaqk.studies.study_runs import RunRecord, StudyRuns

TOKENS = "tokens"
_DEVIATION = "Lines are means over seeds, bands one standard deviation over seeds on both sides."
_LOG_DEVIATION = (
    "Lines are geometric means over seeds, bands one standard deviation of the logarithms over seeds on both sides."
)
_ENERGY = "E|write|² / E|stream|²"


def plots_of(study: StudyRuns) -> list[Plot]:
    """The figures for which there are data; panels without any are left out."""
    plots = (
        Plot(
            name=plot.name, title=plot.title, caption=plot.caption, x=plot.x, panels=[p for p in plot.panels if p.bands]
        )
        for plot in _plots(study)
    )
    return [plot for plot in plots if plot.panels]


def _plots(study: StudyRuns) -> Iterator[Plot]:
    def panel(title: str, y: str, curve: Callable[[RunRecord], Points | None], *, log: bool = False) -> Panel:
        return Panel(title=title, y=y, bands=by_arm(study, curve, log_band if log else deviation_band), log=log)

    def halves(
        title: str, y: str, take: Callable[[RunRecord, str, str], Points], name: str, *, log: bool = False
    ) -> list[Panel]:
        return [panel(f"{title}, {half} layers", y, _of_half(take, name, half), log=log) for half in HALVES]

    yield Plot(
        name="learning-curves",
        title="Learning curves",
        caption=f"{_DEVIATION} Training losses are means over at most a hundred stretches of equal length. The axes "
        "leave out the height of the first tenth.",
        x=TOKENS,
        panels=[
            Panel(
                title=title,
                y="loss (nats per token)",
                bands=by_arm(study, curve),
                zoomed=True,
            )
            for title, curve in (
                ("validation", lambda run: run.validation),
                ("training", lambda run: binned(run.training)),
            )
        ],
    )
    yield Plot(
        name="loss-difference",
        title="Paired difference of the validation loss",
        caption="Mean over seeds of the difference at equal tokens; bands are 95 % t intervals at each point by "
        "itself. Below zero the first arm is better.",
        x=TOKENS,
        panels=[
            Panel(
                title="",
                y="difference (nats per token)",
                bands=by_comparison(study, lambda run: run.validation),
                zoomed=False,
            )
        ],
    )
    yield Plot(
        name="entropy",
        title="Attention entropy",
        caption=f"Normalised entropy, mean over heads and the layers of a half: 1 is uniform, 0 one-hot. {_DEVIATION}",
        x=TOKENS,
        panels=halves("entropy", "entropy / log(row length)", probe_curve, "attention_entropy"),
    )
    yield Plot(
        name="write-energy",
        title="Residual write energy, geometric mean over layers",
        caption="Energy of what a sublayer writes over that of the stream before it, geometric mean over the layers "
        f"of a half. {_LOG_DEVIATION}",
        x=TOKENS,
        panels=[
            *halves("attention", _ENERGY, probe_curve, "attention_write_energy", log=True),
            *halves("FFN", _ENERGY, probe_curve, "ffn_write_energy", log=True),
        ],
    )
    yield Plot(
        name="write-energy-by-layer",
        title="Residual write energy by layer",
        caption=f"Energy of what a sublayer writes over that of the stream before it, at the last probe. "
        f"{_LOG_DEVIATION}",
        x="layer",
        panels=[
            panel(title, _ENERGY, _last_write_energy(name), log=True)
            for title, name in (("attention", "attention_write_energy"), ("FFN", "ffn_write_energy"))
        ],
    )
    yield Plot(
        name="timing",
        title="Upper sharpness and lower stability",
        caption="Sharpness is 1 - normalised entropy; stability is the linear CKA of the stream with that of the last "
        f"checkpoint. {_DEVIATION}",
        x=TOKENS,
        panels=[
            panel("sharpness, upper layers", "1 - entropy", sharpness_curve),
            panel("stability, lower layers", "linear CKA", lambda run: analysis_curve(run, "stability_cka", "lower")),
        ],
    )
    yield Plot(
        name="pathwise",
        title="The two pathwise factors",
        caption=f"From each checkpoint to the next, at the later one's tokens. {_DEVIATION}",
        x=TOKENS,
        panels=[
            *halves("step-size factor", "sum of lr times multiplier", pathwise_curve, "step_size_factor"),
            *halves("residual energy", "E|x|² per element", pathwise_curve, "residual_energy"),
        ],
    )
    yield Plot(
        name="logit-growth",
        title="Growth of the logits",
        caption="Change of the upper layers' logits from each checkpoint to the next, at the later one's tokens, and "
        f"the shares of its parts: signed, they add up to 1. {_DEVIATION}",
        x=TOKENS,
        panels=[
            panel("change, upper layers", "RMS of the logits", _of_half(pathwise_curve, "total", "upper")),
            *(
                panel(
                    f"{part}, upper layers", "share of the change", _of_half(pathwise_curve, f"share/{part}", "upper")
                )
                for part in ("weights", "features", "interaction")
            ),
        ],
    )
    yield Plot(
        name="reliance",
        title="Causal reliance by layer",
        caption="Rise of the loss at the last checkpoint when a layer's attention is replaced by the uniform causal "
        f"average. {_DEVIATION}",
        x="layer",
        panels=[panel("", "rise of the loss (nats per token)", _reliance)],
    )


def _of_half(take: Callable[[RunRecord, str, str], Points], name: str, half: str) -> Callable[[RunRecord], Points]:
    return lambda run: take(run, name, half)


def _last_write_energy(name: str) -> Callable[[RunRecord], Points]:
    # Zero has no place on a logarithmic axis.
    return lambda run: {
        layer: value for layer, value in enumerate(run.probes[-1].get(name, []) if run.probes else []) if value
    }


def _reliance(run: RunRecord) -> Points:
    steps = (run.analysis or {}).get("reliance_layer") or [[]]
    return {layer: value for layer, value in enumerate(steps[-1]) if value is not None}
