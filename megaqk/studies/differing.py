"""Where the configurations and versions of a study's runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from megaqk.studies.study_runs import RunRecord, StudyRuns

# What tells runs of one arm apart.
_OWN = ("run.dir", "training.seed")
_DATA = ("training.steps", "training.global_batch_size", "training.sequence_length", "training.seed")
_ANALYSIS = ("steps", "probe_tokens", "reference_step", "upper")
_ABSENT = object()


def arm_differences(study: StudyRuns) -> dict[str, dict[str, Any]]:
    """Configuration keys in which arms differ, with the value of each arm that has the key."""
    arms = {run.arm: run.config for run in reversed(study.runs) if run.config}
    return {
        key: {arm: arms[arm][key] for arm in study.arms if key in arms.get(arm, {})}
        for key in _unlike([arms[arm] for arm in study.arms if arm in arms])
        if key not in _OWN
    }


def uneven_arms(study: StudyRuns) -> dict[str, list[str]]:
    """Arms whose own runs differ, seed and folder apart, with the keys: their means mix different things."""
    keys = {arm: _unlike([run.config for run in study.runs if run.arm == arm and run.config]) for arm in study.arms}
    found = {arm: [key for key in ones if key not in _OWN] for arm, ones in keys.items()}
    return {arm: ones for arm, ones in found.items() if ones}


def data_differences(study: StudyRuns) -> list[str]:
    """Keys in which runs of one seed differ, and by which they learn from other samples, or in another order."""
    keys = (_unlike([run.config for run in study.runs if run.seed == seed and run.config]) for seed in study.seeds)
    return list(dict.fromkeys(key for ones in keys for key in ones if key in _DATA or key.startswith("data.")))


def uneven_analyses(study: StudyRuns) -> dict[str, list[str]]:
    """Settings of analyses, with the runs whose own is another than that of the first analysed run."""
    analysed = {run.name: run.analysis for run in study.runs if run.analysis}
    first = next(iter(analysed.values()), {})
    found = {key: [name for name, one in analysed.items() if one[key] != first[key]] for key in _ANALYSIS}
    return {key: names for key, names in found.items() if names}


def software(study: StudyRuns) -> dict[str, dict[str, list[str]]]:
    """Versions of each component, and the topology, each with the runs that had it."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in study.runs:
        for name, value in _facts(run).items():
            found.setdefault(name, {}).setdefault(value, []).append(run.name)
    return found


def _facts(run: RunRecord) -> Mapping[str, str]:
    topology = ", ".join(f"{axis} {size}" for axis, size in run.topology.items())
    return {**run.versions, **({"topology": topology} if topology else {})}


def _unlike(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which any configuration differs from the first."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [key for key in keys if any(one.get(key, _ABSENT) != configs[0].get(key, _ABSENT) for one in configs)]
