"""A study as its folder has it: the plan, and what every run left behind."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaqk.analysis.probe import ANALYSIS_FILE
from megaqk.config.loading import read_mapping
from megaqk.errors import UserError
from megaqk.evaluation.evaluations import read_results, result_file
from megaqk.studies.file_schemas import AnalysisFile, StudyFile, checked
from megaqk.studies.plan import STUDY_FILE
from megaqk.training.metrics import METRICS_FILE, read_metrics
from megaqk.training.probe_writer import PROBES_FILE
from megaqk.training.run_folder import RESULT_FILE
from megaqk.training.run_summary import summarise

_ANALYSE_AGAIN = "remove it; the next `megaqk study run` makes it again"

Curve = dict[int, float]
"""Values by tokens."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run; of one that is not finished, its state alone.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        state: As in `result.json`, or `missing`.
        step: Steps taken; None where unknown.
        steps: Of the whole run.
        loss: The final validation loss in nats a token; None where the run is not finished or has none.
        versions: Of the software.
        topology: Sizes of the parallel axes.
        config: Dotted keys, defaults resolved.
        training: Training loss.
        validation: Validation loss.
        probes: Records of `probes.jsonl`.
        analysis: `analysis.json`, None where there is none.
        accuracy: By task, at the last step, of the tasks that `megaqk evaluate` has run.
    """

    arm: str
    seed: int
    state: str
    step: int | None
    steps: int | None
    loss: float | None
    versions: dict[str, str]
    topology: dict[str, int]
    config: dict[str, Any]
    training: Curve
    validation: Curve
    probes: list[dict[str, Any]]
    analysis: dict[str, Any] | None
    accuracy: dict[str, float]

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class StudyRuns:
    """A study with its runs, arm by arm, seed by seed.

    Attributes:
        name: Of the study.
        description: What it asks.
        size: Name of its size.
        command: What ran it.
        seeds: Planned for every arm.
        arms: Names, in order.
        comparisons: Pairs (arm, against which).
        interactions: Pairs of such pairs, as four arms.
        runs: One for each arm and seed.
    """

    name: str
    description: str
    size: str
    command: str
    seeds: list[int]
    arms: list[str]
    comparisons: list[tuple[str, str]]
    interactions: list[tuple[str, str, str, str]]
    runs: list[RunRecord]

    @property
    def incomplete(self) -> list[RunRecord]:
        """Runs without a final loss."""
        return [run for run in self.runs if run.loss is None]

    def of(self, arm: str) -> list[RunRecord]:
        """The runs of an arm that have a final loss."""
        return [run for run in self.runs if run.arm == arm and run.loss is not None]

    @property
    def contrasts(self) -> dict[str, tuple[str, ...]]:
        """Comparisons and interactions by name, two or four arms each."""
        pairs = {versus(*pair): pair for pair in self.comparisons}
        return pairs | {f"({a} - {b}) - ({c} - {d})": (a, b, c, d) for a, b, c, d in self.interactions}

    def contrast(self, arms: tuple[str, ...], value: Callable[[RunRecord], float | None]) -> dict[int, float | None]:
        """A number's first arm minus the second, and of four minus the third's minus the fourth's.

        Returns:
            By seed of which all arms have a final loss; None where one of their runs lacks the number.
        """
        found = [{run.seed: value(run) for run in self.of(arm)} for arm in arms]
        differences: dict[int, float | None] = {}
        for seed in (seed for seed in self.seeds if all(seed in ones for ones in found)):
            known = [number for ones in found if (number := ones[seed]) is not None]
            signed = zip((1, -1, -1, 1), known, strict=False)
            differences[seed] = sum(sign * one for sign, one in signed) if len(known) == len(arms) else None
        return differences

    def pairs(self, arm: str, against: str) -> list[tuple[RunRecord, RunRecord]]:
        """The runs of two arms that have a final loss for the same seed."""
        others = {run.seed: run for run in self.of(against)}
        return [(run, others[run.seed]) for run in self.of(arm) if run.seed in others]


def versus(arm: str, against: str) -> str:
    """The name of a comparison."""
    return f"{arm} vs {against}"


def read_study(folder: Path) -> StudyRuns:
    """Read what `megaqk study run` wrote.

    Raises:
        UserError: The folder is none of a study, or a file in it is damaged.
    """
    path = folder / STUDY_FILE
    if not path.is_file():
        raise UserError(f"{folder}: must be the folder of a study, with {STUDY_FILE} in it (megaqk study run)")
    content = read_mapping(path, "name, arms, seeds and comparisons")
    plan = checked(StudyFile, content, path, "it must be the file that megaqk study run writes")
    return StudyRuns(
        name=plan.name,
        description=plan.description,
        size=plan.size,
        command=plan.command,
        seeds=list(plan.seeds),
        arms=list(plan.arms),
        comparisons=list(plan.comparisons),
        interactions=list(plan.interactions),
        runs=[_read_run(folder, arm, seed) for arm in plan.arms for seed in plan.seeds],
    )


def _read_run(study: Path, arm: str, seed: int) -> RunRecord:
    folder = study / arm / f"seed-{seed}"
    stand = summarise(folder, folder.name)
    result = _json(folder / RESULT_FILE, "write it again or remove it") or {}
    config_file = folder / "config.yaml"
    finished = stand.state == "finished"
    records = _records(folder / METRICS_FILE) if finished else []
    analysis = _json(folder / ANALYSIS_FILE, _ANALYSE_AGAIN) if finished else None
    if analysis is not None:
        checked(AnalysisFile, analysis, folder / ANALYSIS_FILE, _ANALYSE_AGAIN)
    return RunRecord(
        arm=arm,
        seed=seed,
        state=stand.state if folder.is_dir() else "missing",
        step=stand.step,
        steps=stand.steps,
        loss=result.get("valid_loss") if finished else None,
        versions=result.get("versions", {}),
        topology=result.get("topology", {}),
        config=dict(_dotted(read_mapping(config_file, "sections"))) if config_file.exists() else {},
        training=_curve(records, "loss"),
        validation=_curve(records, "valid_loss"),
        # The records of a run's probes are lines as those of its metrics.
        probes=_records(folder / PROBES_FILE) if finished and (folder / PROBES_FILE).exists() else [],
        analysis=analysis,
        accuracy=_accuracy(folder, stand.steps) if finished and stand.steps else {},
    )


def _accuracy(folder: Path, step: int) -> dict[str, float]:
    tasks = read_results(result_file(folder, step))
    return {
        task: found["metrics"]["acc"]["value"] for task, found in tasks.items() if "acc" in found.get("metrics", {})
    }


def _records(path: Path) -> list[dict[str, Any]]:
    records = list(read_metrics(path))
    for record in records:
        if not isinstance(record.get("tokens"), int):
            raise UserError(f"{path}: the record of step {record['step']} has no number of tokens; remove its line")
    return records


def _curve(records: list[dict[str, Any]], name: str) -> Curve:
    return {record["tokens"]: record[name] for record in records if record.get(name) is not None}


def _dotted(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; a list of scalars is one leaf, and so is an empty section."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _dotted(value, f"{prefix}.{key}" if prefix else key)
    elif isinstance(tree, list) and any(isinstance(value, dict) for value in tree):
        for index, value in enumerate(tree):
            yield from _dotted(value, f"{prefix}.{index}")
    else:
        yield prefix, tree


def _json(path: Path, advice: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is damaged, must be a JSON object; {advice}")
    return content
