"""The report's sections, from its numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping

from megaqk.analysis.timing_index import LEAST_SHARPENING, STABILITY_THRESHOLD
from megaqk.config.yaml_text import show
from megaqk.studies.document import Command, Document, Picture, Section, Table
from megaqk.studies.numbers import Numbers, Reach
from megaqk.studies.statistics import resamples
from megaqk.studies.study_runs import StudyRuns
from megaqk.studies.tables import NONE, arms_table, differences_table, full_table, interval, number

Part = str | Table | Picture | Command

_MECHANISM = (
    (
        "Downstream accuracy",
        (("downstream", "Accuracy of lm-evaluation-harness's tasks at the last checkpoint."),),
        (),
        "No finished run has been evaluated: `megaqk evaluate --all RUN_DIR --tasks ...` does it.",
    ),
    (
        "Attention entropy and write energy",
        (
            (
                "probes",
                "Entropies are means over all probes of a run, over heads, and over the layers of a half; write "
                "energies are geometric means over the probes and the layers.",
            ),
        ),
        ("entropy", "write-energy", "write-energy-by-layer"),
        "No finished run has probes (`probes.every`).",
    ),
    (
        "Timing index",
        (
            (
                "timing",
                "Tokens at which the upper layers are sharp, minus tokens from which on the lower ones are stable: "
                "negative is premature. One measure for all arms: upper layers are those from L/2 on; {sharp}; stable "
                "is a CKA of {stable} with the last checkpoint; linear between checkpoints. An arm has a mean only "
                "where all of its runs cross.",
            ),
            (
                "own_timing",
                "The same as `megaqk probe` gives it for each run by itself (analysis.json): thresholds and layers may "
                "be its own, so that arms are not compared by one measure.",
            ),
        ),
        ("timing",),
        "No finished run has been analysed: `megaqk probe` writes analysis.json.",
    ),
    (
        "The two pathwise factors",
        (
            (
                "pathwise",
                "Step-size factor: sum of lr times multiplier over the steps from the first checkpoint to the last, "
                "mean of query and key. Residual energy: mean square of the stream that enters a layer, mean over "
                "pairs of checkpoints, however far apart, of the mean of both.",
            ),
        ),
        ("pathwise",),
        "No finished run has a pathwise decomposition: `megaqk probe` makes it of two or more checkpoints.",
    ),
    (
        "Growth of the upper layers' logits",
        (
            (
                "growth",
                "From each checkpoint to the next, unweighted means over pairs of checkpoints, however far apart, and "
                "over layers. Shares are signed and add up to 1.",
            ),
        ),
        ("logit-growth",),
        "No finished run has a pathwise decomposition: `megaqk probe` makes it of two or more checkpoints.",
    ),
    (
        "Causal reliance",
        (
            (
                "reliance",
                "Rise of the loss, in nats per token, at the last checkpoint when attention is replaced by the uniform "
                "causal average: of one layer, mean over the layers of a half, or of one head, mean over upper heads. "
                "Sharp early are the sharper half of the upper heads at the last checkpoint in the first quarter of "
                "the tokens, initial weights apart.",
            ),
        ),
        ("reliance",),
        "No finished run has been analysed: `megaqk probe` writes analysis.json.",
    ),
)


def compose(study: StudyRuns, numbers: Numbers, pictures: Mapping[str, Picture], command: str) -> Document:
    """Put the report together.

    Args:
        study: The runs.
        numbers: Made of them.
        pictures: By name.
        command: What makes this report.
    """
    finished = len(study.runs) - len(study.incomplete)
    lead = [
        *([study.description] if study.description else []),
        f"{len(study.arms)} arms by {len(study.seeds)} seeds ({', '.join(map(str, study.seeds))}); {finished} of "
        f"{len(study.runs)} runs are finished. In runs of one seed weights of the same name and shape start alike"
        f"{'' if numbers.data_differences else ', and all arms learn from the same samples in the same order'}: "
        "differences are taken seed by seed.",
    ]
    sections = [
        Section("Final loss", list(_loss(study, numbers, pictures))),
        Section("Learning curves", _drawn(pictures, "learning-curves", "loss-difference") or ["No run is finished."]),
        *([Section("Tokens to reach the other arm's final loss", list(_efficiency(numbers)))] if numbers.reach else []),
        *_mechanism(numbers, pictures),
        Section("Differences between the arms", list(_configurations(study, numbers))),
        Section("Runs and software", list(_runs(study, numbers))),
        Section("Commands", ["The runs and this report:", Command(study.command), Command(command)]),
    ]
    title = f"Study {study.name}, size {study.size}"
    return Document(title, lead, list(_warnings(study, numbers)), sections)


def _warnings(study: StudyRuns, numbers: Numbers) -> Iterator[str]:
    if study.incomplete:
        names = ", ".join(f"{run.name} ({run.state})" for run in study.incomplete)
        yield (
            f"This study is incomplete: {len(study.incomplete)} of {len(study.runs)} runs have no final loss: {names}. "
            "Differences are of the seeds that both arms have; means by arm may be of different seeds."
        )
    if numbers.data_differences:
        yield (
            "Runs of one seed do not learn from the same samples in the same order in all arms; they differ in "
            f"{', '.join(numbers.data_differences)}."
        )
    for arm, keys in numbers.uneven_arms.items():
        yield f"The runs of arm {arm} do not have one configuration; they differ in {', '.join(keys)}."
    first = next((run.name for run in study.runs if run.analysis), "")
    for key, others in numbers.uneven_analyses.items():
        yield f"Analyses are not made alike: {key} is not that of {first} in {', '.join(others)}."
    for name, versions in numbers.software.items():
        if len(versions) > 1:
            yield f"Runs differ in {name}: {', '.join(versions)}."


def _loss(study: StudyRuns, numbers: Numbers, pictures: Mapping[str, Picture]) -> Iterator[Part]:
    if "loss" not in numbers.arms:
        yield "No run has a final loss yet."
        return
    yield "The final validation loss of a run, and its exponential; mean ± standard deviation over seeds."
    yield arms_table(numbers, "loss")
    if not study.contrasts:
        yield "The study names no comparisons."
        return
    count = len(study.contrasts)
    yield (
        "Paired differences of the final loss in nats per token; below zero the first arm is better. The t interval is "
        "mean ± t(0.975, n - 1) deviation / √n. The simultaneous one holds for "
        f"{'the one comparison' if count == 1 else f'all {count} comparisons at once'} "
        f"(Bonferroni, level 1 - 0.05 / {count}). p is of the two-sided paired t test, by itself and corrected over "
        "the comparisons (Holm)."
        + " (a - b) - (c - d) is by how much the effect of one change depends on another."
        * bool(study.interactions)
    )
    yield full_table(numbers.differences["loss"], ".4f")
    if smallest := min((one.n for one in numbers.differences["loss"].values() if one.n > 1), default=0):
        yield (
            f"The bootstrap interval (BCa, fixed seed) resamples pairs: {smallest} pairs have {resamples(smallest)} "
            "different resamples, none of which has a mean beyond the smallest and largest difference. With so few "
            "it is too narrow, and the t interval is the one to go by."
            if smallest < 10
            else "The bootstrap interval is BCa with a fixed seed."
        )
    yield "The same of perplexity:"
    yield full_table(numbers.differences["perplexity"], ".3f")
    yield from _drawn(pictures, "final-loss")


def _efficiency(numbers: Numbers) -> Iterator[Part]:
    yield (
        "Tokens at which the validation loss of the first arm is first at or below the final loss of the second arm's "
        "run of the same seed, linear between evaluations, as a share of that run's tokens. Where the schedule "
        "decays to the end, the learning rate has not come down there yet: a run planned for that length would do "
        "better, so that the saving is understated. It is summarised only where all pairs reach the loss."
    )
    rows = [_reach_row(name, reach) for name, reach in numbers.reach.items()]
    yield Table(
        ["comparison", "reached", "share of tokens, by seed", "tokens saved, mean", "95 % t", "simultaneous 95 % t"],
        rows,
    )


def _reach_row(name: str, reach: Reach) -> list[str]:
    shares = [f"{seed}: {'not reached' if share is None else f'{share:.1%}'}" for seed, share in reach.share.items()]
    reached = sum(share is not None for share in reach.share.values())
    saved = reach.saved
    return [
        name,
        f"{reached} of {len(reach.share)}",
        ", ".join(shares) or NONE,
        number(saved.mean, "+.1%"),
        interval(saved.t_interval, ".1%"),
        interval(saved.simultaneous_interval, ".1%"),
    ]


def _mechanism(numbers: Numbers, pictures: Mapping[str, Picture]) -> Iterator[Section]:
    there = {measure.section for measure in numbers.measures}
    threshold = numbers.sharpness_threshold
    sharp = (
        f"there is no sharpness to reach, since that of the baselines is not known to rise by {LEAST_SHARPENING}"
        if threshold is None
        else f"they are sharp from {number(threshold, '.4f')} (half of the way that the baselines go)"
    )
    for title, groups, names, absent in _MECHANISM:
        parts: list[Part] = []
        for section, text in groups:
            if section in there:
                parts.append(text.format(sharp=sharp, stable=STABILITY_THRESHOLD))
                parts.append(arms_table(numbers, section))
                if numbers.differences["loss"]:
                    parts.append("Paired differences with 95 % t intervals, not corrected for their number:")
                    parts.append(differences_table(numbers, section))
        yield Section(title, [*parts, *_drawn(pictures, *names)] if parts else [absent])


def _configurations(study: StudyRuns, numbers: Numbers) -> Iterator[Part]:
    yield "Every configuration key in which arms differ, defaults resolved, but for folder and seed."
    keys = numbers.differing_keys
    rows = [
        ["key", *study.arms],
        *([key, *(show(ones[arm]) if arm in ones else NONE for arm in study.arms)] for key, ones in keys.items()),
    ]
    if len(keys) < len(study.arms):
        rows = [["arm", *keys], *map(list, list(zip(*rows, strict=True))[1:])]
    yield Table(rows[0], rows[1:])


def _runs(study: StudyRuns, numbers: Numbers) -> Iterator[Part]:
    states = {arm: Counter(run.state for run in study.runs if run.arm == arm) for arm in study.arms}
    yield Table(
        ["arm", "runs", "with a final loss", "states"],
        [
            [arm, str(found.total()), str(len(study.of(arm))), ", ".join(f"{n} {state}" for state, n in found.items())]
            for arm, found in states.items()
        ],
    )
    yield Table(
        ["software", "version", "runs"],
        [
            [name, version, str(len(runs))]
            for name, versions in numbers.software.items()
            for version, runs in versions.items()
        ],
    )


def _drawn(pictures: Mapping[str, Picture], *names: str) -> list[Part]:
    return [pictures[name] for name in names if name in pictures]
