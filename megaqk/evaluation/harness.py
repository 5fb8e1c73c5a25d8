"""lm-evaluation-harness: its tasks, and a model of ours on them.

Import it when it is known whether the network is needed: its libraries look that up in the environment once.
"""

import difflib
import io
import logging
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers.utils.logging import set_verbosity_error

from megaqk.errors import UserError
from megaqk.evaluation.shipped_tasks import FOLDER, shipped_names
from megaqk.exchange.in_memory import load_transformers
from megaqk.runtime.logs import quiet

_BOOTSTRAPS = 1000
"""Draws for the errors that have no formula, as that of perplexity; the harness takes a hundred times as many."""

logging.getLogger("lm_eval").setLevel(logging.ERROR)
set_verbosity_error()
os.environ["DISABLE_MULTIPROC"] = "1"  # for so few draws it would start as many processes as there are cores


@dataclass(frozen=True, kw_only=True)
class How:
    """How a model is evaluated.

    Attributes:
        device: Where it goes; each process of several has its own.
        batch_size: Requests at a time.
        limit: Items of each task, the first of it; None takes all.
        tokenizer: See `load_transformers`.
    """

    device: torch.device
    batch_size: int
    limit: int | None
    tokenizer: Path | None


class LoadedModel(HFLM):  # type: ignore[misc]
    """A model that is in memory, in all that the harness does with one that it loads itself.

    It takes the harness for its devices and processes: under `accelerate launch` each process has a part of the
    requests.

    Args:
        path: See `load_transformers`.
        how: See `How`.

    Attributes:
        num_cut: Requests that have lost their beginning, since they are longer than the model's context.
    """

    def __init__(self, path: Path, how: How) -> None:
        self.num_cut = 0
        self._loaded, self._its_tokenizer = load_transformers(path, how.tokenizer)
        super().__init__(pretrained=str(path), device=str(how.device), batch_size=how.batch_size)

    def _get_config(self, *_: Any, **__: Any) -> None:
        self._config = self._loaded.config

    def _create_tokenizer(self, *_: Any, **__: Any) -> None:
        self.tokenizer = self._its_tokenizer

    def _create_model(self, *_: Any, **__: Any) -> None:
        self._model = self._loaded.to(self.device)

    def _loglikelihood_tokens(self, requests: Sequence[Any], *more: Any, **others: Any) -> Any:
        self.num_cut += sum(len(context) + len(asked) > self.max_length + 1 for _, context, asked in requests)
        return super()._loglikelihood_tokens(requests, *more, **others)


class Harness:
    """Some of its tasks.

    Args:
        names: Of tasks, groups or tags, or paths of tasks' files.

    Raises:
        UserError: There is no such task, or what it needs cannot be had.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        # Its own are twelve thousand files, which take half a minute.
        others = any(name not in shipped_names() and not Path(name).is_file() for name in names)
        self._manager = TaskManager(include_path=str(FOLDER), include_defaults=others)
        for name in names:
            if name not in self._manager.all_tasks and not Path(name).is_file():
                raise UserError(f"--tasks = {name}: {what_there_is(name, self._manager.all_tasks)}")
        self._tasks = {name: self._load(name) for name in names}
        named_by: dict[str, str] = {}
        for name, tasks in self._tasks.items():
            if twice := sorted(tasks.keys() & named_by.keys()):
                raise UserError(f"--tasks = {name}: must not have {twice[0]}, which {named_by[twice[0]]} has too")
            named_by.update(dict.fromkeys(tasks, name))

    def _load(self, name: str) -> dict[str, Any]:
        try:
            with _silent():
                return dict(self._manager.load([name])["tasks"])
        except Exception as error:  # whatever a loader of data raises
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise UserError(f"--tasks = {name}: cannot be loaded ({reason})") from error

    @cached_property
    def _chances(self) -> dict[str, dict[str, float]]:
        every = {name: task for tasks in self._tasks.values() for name, task in tasks.items()}
        return {name: _chance(task) for name, task in every.items()}

    def missing(self, found: dict[str, Any], limit: int | None) -> list[str]:
        """Those of the names of which a task has no result yet, or one by another version or limit."""

        def is_there(name: str, task: Any) -> bool:
            one = found.get(name)
            return one is not None and bool(one["limit"] == limit and one["version"] == task.VERSION)

        return [name for name, tasks in self._tasks.items() if not all(is_there(*named) for named in tasks.items())]

    # The harness's `simple_evaluate` would ask the hub for the model, git for a commit and pip for what is installed.
    def evaluate(self, path: Path, names: Sequence[str], how: How) -> dict[str, Any] | None:
        """Measure a model.

        Args:
            path: See `load_transformers`.
            names: Which of the names.
            how: See `How`.

        Returns:
            What `docs/evaluation.md` describes, by task and group; None on the processes that do not have it.
        """
        random.seed(DEFAULT_RANDOM_SEED)
        np.random.seed(DEFAULT_OTHER_SEED)
        torch.manual_seed(DEFAULT_OTHER_SEED)
        with _silent():
            model, loaded = LoadedModel(path, how), self._manager.load(list(names))
            for task in loaded["tasks"].values():
                if task.get_config("num_fewshot") is None:
                    task.set_config("num_fewshot", 0)
                task.set_fewshot_seed(DEFAULT_OTHER_SEED)
            found = evaluate(model, loaded, limit=how.limit, bootstrap_iters=_BOOTSTRAPS, log_samples=False)
        if found is None:
            return None
        if model.num_cut:
            where = f"the model's context of {model.max_length} tokens"
            print(f"megaqk: {model.num_cut} requests are longer than {where}: their beginning is cut", file=sys.stderr)
        versions = {name: version(name) for name in ("megaqk", "lm_eval", "transformers", "torch")}
        return {
            name: {
                "metrics": _metrics(result, self._chances.get(name, {})),
                "n": result.get("sample_len"),
                "limit": how.limit,
                "version": found["versions"].get(name),
                "versions": versions,
            }
            for name, result in found["results"].items()
        }


@contextmanager
def _silent() -> Iterator[None]:
    # Its bars are for terminals; what it prints is nobody's.
    with quiet(), nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield


def what_there_is(name: str, names: Sequence[str]) -> str:
    """What a user is told who has asked for a task that is none of these."""
    near = difflib.get_close_matches(name, names, n=3)
    others = len(names) - len(shipped_names())
    return (
        f"must be one of {', '.join(shipped_names())}"
        + (f", one of {others} of lm-evaluation-harness (lm_eval ls tasks)" if others > 0 else "")
        + ", or the file of a task"
        + (f"; near it: {', '.join(near)}" if near else "")
    )


def _chance(task: Any) -> dict[str, float]:
    """What guessing reaches, by metric: what the task says, or for one of several choices the mean of one over them."""
    if stated := (task.config.metadata or {}).get("chance"):
        return dict(stated)
    if task.OUTPUT_TYPE != "multiple_choice":
        return {}
    each = fmean(1 / len(task.doc_to_choice(doc)) for doc in task.eval_docs)
    return dict.fromkeys(("acc", "acc_norm"), each)


def _metrics(result: dict[str, Any], chances: dict[str, float]) -> dict[str, Any]:
    # `acc,none` and `acc_stderr,none`, with the name of a filter behind the comma.
    values = {tuple(key.split(",")): value for key, value in result.items() if "," in key}
    found = {}
    for (metric, by), value in values.items():
        if not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get((f"{metric}_stderr", by))
            found[metric if by == "none" else f"{metric},{by}"] = {
                "value": value if isfinite(value) else None,
                "stderr": error if isinstance(error, float) and isfinite(error) else None,
                "chance": chances.get(metric),
            }
    return found
