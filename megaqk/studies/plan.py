"""From a study file to the configuration of every run."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megaqk.config.loading import apply_override, build_config, load_config, read_mapping
from megaqk.config.problems import describe
from megaqk.config.root import Config
from megaqk.config.yaml_text import format_yaml, show
from megaqk.errors import UserError
from megaqk.runtime.files import os_errors_named, written_whole
from megaqk.studies.schema import StudyConfig, laid_over

STUDY_FILE = "study.yaml"
"""In the folder of a study, what was run there."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a study.

    Attributes:
        arm: Its arm.
        config: Its configuration, seed and folder included.
    """

    arm: str
    config: Config

    @property
    def seed(self) -> int:
        """What it shares with the runs of the other arms."""
        return self.config.training.seed

    @property
    def name(self) -> str:
        """Arm and seed."""
        return f"{self.arm}/seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return Path(self.config.run.dir)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study at one size.

    Attributes:
        spec: Its file.
        size: Name of the size.
        folder: Below which its runs are.
        runs: All of them, seed by seed, so that what is there is balanced whenever it is interrupted.
    """

    spec: StudyConfig
    size: str
    folder: Path
    runs: tuple[Run, ...]

    @property
    def processes(self) -> int:
        """Processes of one run."""
        return self.spec.sizes[self.size].processes

    def keep(self, command: str) -> None:
        """Write what is run into the folder, for the report.

        Raises:
            UserError: The folder is that of another study, or has arms that this one lacks.
        """
        path = self.folder / STUDY_FILE
        before = read_mapping(path, "name, arms, seeds and comparisons") if path.exists() else {}
        for key, now in (("name", self.spec.name), ("size", self.size)):
            if before.get(key, now) != now:
                raise UserError(f"{path}: {key} = {before[key]}: is another study than {now}; choose another --output")
        if gone := [arm for arm in before.get("arms", ()) if arm not in self.spec.all_arms]:
            raise UserError(f"{path}: has the arm {gone[0]}, which this study lacks; choose another --output")
        content = {
            "name": self.spec.name,
            "description": self.spec.description,
            "arms": self.spec.all_arms,
            "comparisons": self.spec.all_comparisons,
            "interactions": self.spec.interactions,
            "size": self.size,
            "seeds": list(dict.fromkeys(run.seed for run in self.runs)),
            "command": command,
        }
        with os_errors_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as beside:
            beside.write_text(format_yaml(content))


def load_study(path: Path, size: str, folder: Path | None = None, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and check every run of it.

    Args:
        path: The file; `extends` in it names one beside it, over which it is laid.
        size: One of its sizes.
        folder: Below which the runs go; None means runs/studies/<name>-<size>.
        overrides: `section.key=value` each, for all runs.

    Raises:
        UserError: One line that names the first refused key, and the arm where it is one's.
    """
    raw = read_mapping(path, "name, base, arms, seeds and sizes")
    if (below := raw.pop("extends", None)) is not None:
        if not isinstance(below, str):
            raise UserError(f"{path}: extends = {show(below)}: must be the name of a file beside it")
        raw = laid_over(read_mapping(path.parent / below, "what studies share"), raw)
    try:
        spec = StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, StudyConfig)[0]}") from None
    if size not in spec.sizes:
        raise UserError(f"--size = {size}: must be one of {', '.join(spec.sizes)}")
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in ("run.dir", "training.seed"):
            raise UserError(f"{override}: {key} is the study's own; use {'--output' if key == 'run.dir' else '--seed'}")
    chosen = spec.sizes[size]
    folder = Path("runs/studies") / f"{spec.name}-{size}" if folder is None else folder
    runs = []
    for seed in chosen.seeds or spec.seeds:
        for arm, changes in spec.all_arms.items():
            plain = laid_over(laid_over(spec.base, chosen.config), changes)
            plain = laid_over(plain, chosen.arms.get(arm, {}))
            own = {"run": {"dir": str(folder / arm / f"seed-{seed}")}, "training": {"seed": seed}}
            try:
                for override in overrides:
                    apply_override(plain, override)
                config = build_config(laid_over(plain, own))
                if spec.analysis and config.model.num_layers == 1:
                    raise UserError("model.num_layers = 1: must be at least 2 for an analysis, or set analysis: false")
            except UserError as error:
                raise UserError(f"{path}: arm {arm}: {error}") from None
            runs.append(Run(arm=arm, config=config))
    for run, other in combinations(runs[: len(spec.all_arms)], 2):
        if not differing_keys(run.config, other.config):
            raise UserError(f"{path}: arms {run.arm} and {other.arm} are the same configuration")
    return Study(spec=spec, size=size, folder=folder, runs=tuple(runs))


def differing_keys(one: Config, other: Config) -> list[str]:
    """`key = value, was value` for what differs between two configurations, `run` left out."""
    lines: list[str] = []

    def compare(key: str, new: Any, old: Any) -> None:
        if isinstance(new, dict) and isinstance(old, dict):
            for name in dict.fromkeys([*new, *old]):
                compare(f"{key}.{name}" if key else name, new.get(name), old.get(name))
        elif new != old:
            lines.append(f"{key} = {show(new)}, was {show(old)}")

    compare("", one.model_dump(mode="json", exclude={"run"}), other.model_dump(mode="json", exclude={"run"}))
    return lines


def check_same(run: Run) -> None:
    """Refuse to go on in a folder where something else was run.

    Raises:
        UserError: It names the first key that differs.
    """
    written = run.folder / "config.yaml"
    if written.exists() and (changes := differing_keys(run.config, load_config(written))):
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        raise UserError(f"{run.folder}: holds another run: {changes[0]}{more}; choose another --output, or remove it")
