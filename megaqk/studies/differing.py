"""Where the configurations and versions of a study's runs differ."""

from collections.abc import Mapping
from typing import Any

from megaqk.studies.study_runs import Run, StudyRuns

# What tells runs of one arm apart.
_OWN = ("run.dir", "training.seed")
_ABSENT = object()


def differing_keys(study: StudyRuns) -> dict[str, dict[str, Any]]:
    """Configuration keys in which arms differ, with the value of each arm that has the key."""
    arms = {run.arm: run.config for run in reversed(study.runs) if run.config}
    keys = dict.fromkeys(key for arm in study.arms for key in arms.get(arm, {}))
    return {
        key: {arm: arms[arm][key] for arm in study.arms if key in arms.get(arm, {})}
        for key in keys
        if key not in _OWN and _differ(config.get(key, _ABSENT) for config in arms.values())
    }


def uneven_arms(study: StudyRuns) -> dict[str, list[str]]:
    """Arms whose own runs differ, seed and folder apart, with the keys: their means mix different things."""
    found = {}
    for arm in study.arms:
        configs = [run.config for run in study.runs if run.arm == arm and run.config]
        keys = dict.fromkeys(key for config in configs for key in config if key not in _OWN)
        uneven = [key for key in keys if _differ(config.get(key, _ABSENT) for config in configs)]
        if uneven:
            found[arm] = uneven
    return found


def software(study: StudyRuns) -> dict[str, dict[str, list[str]]]:
    """Versions of each component, and the topology, each with the runs that had it."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in study.runs:
        for name, value in _facts(run).items():
            found.setdefault(name, {}).setdefault(value, []).append(f"{run.arm}/seed-{run.seed}")
    return found


def _facts(run: Run) -> Mapping[str, str]:
    topology = ", ".join(f"{axis} {size}" for axis, size in run.topology.items())
    return {**run.versions, **({"topology": topology} if topology else {})}


def _differ(values: Any) -> bool:
    first, *rest = values
    return any(value != first for value in rest)
