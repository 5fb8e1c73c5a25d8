"""What a checkpoint must have in common with the run that goes on from it; not the topology."""

import hashlib
from pathlib import Path
from typing import Any

from megaqk.config.yaml_text import show
from megaqk.errors import UserError
from megaqk.training.engine import TrainingEngine

FREE_SECTIONS = ("run", "checkpoint", "logging", "evaluation", "probes")
"""Sections that a resumed run may change without a word."""


def identity(engine: TrainingEngine) -> dict[str, Any]:
    """What of a run beside its configuration a checkpoint must fit."""
    return {
        "tokens": engine.vocabulary.tokens,
        "optimizer": engine.implementation,
        "groups": {
            group.name: hashlib.sha256("\n".join(group.parameters).encode()).hexdigest()[:12] for group in engine.groups
        },
    }


def check_compatible(manifest: dict[str, Any], config: dict[str, Any], mine: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that this run cannot continue from.

    Args:
        manifest: What was written beside the checkpoint.
        config: The resolved configuration of this run.
        mine: This run's `identity`.
        path: The checkpoint, for the message.

    Raises:
        UserError: Naming the first key that differs.
    """
    keys = [("model", key) for key in config["model"]]
    keys += [("training", key) for key in ("sequence_length", "seed")]
    for section, key in keys:
        was, now = manifest["config"].get(section, {}).get(key), config[section][key]
        if was != now:
            raise UserError(f"{section}.{key} = {show(now)}: must be {show(was)}, with which {path} was written")
    written = manifest["identity"]
    for part, advice in (
        ("tokens", "data.tokenizer: resume with the same tokenizer"),
        ("optimizer", "optimizer.implementation: resume with the same implementation"),
    ):
        if written[part] != mine[part]:
            raise UserError(f"{path}: was written with {part} {written[part]}, this run has {mine[part]}; {advice}")
    was, now = written["groups"], mine["groups"]
    differing = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if differing:
        raise UserError(
            f"qk_timing: the parameter groups {', '.join(differing)} hold other parameters than in {path}; resume with "
            "rules that act on the same parameters, or start another run.dir"
        )


def changed_keys(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys in which a resumed run differs from the checkpoint, as `section.key = now (was then)`."""
    return [
        f"{section}.{key} = {show(value)} (was {show(was.get(section, {}).get(key))})"
        for section, keys in now.items()
        if section not in FREE_SECTIONS and isinstance(keys, dict)
        for key, value in keys.items()
        if was.get(section, {}).get(key) != value
    ]
