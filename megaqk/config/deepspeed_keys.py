"""Whether DeepSpeed knows a key and accepts its value, asked before a process starts."""

import difflib
import os
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ValidationError

from megaqk.config.problems import describe_value
from megaqk.config.yaml_text import show
from megaqk.errors import UserError

# DeepSpeed ignores a top-level key that it does not know. These are the ones that `DeepSpeedConfig._initialize_params`
# of 0.19 reads, less those that our schema decides.
KNOWN: frozenset[str] = frozenset(
    {
        "aio",
        "allgather_size",
        "autotuning",
        "bf16",
        "checkpoint",
        "comet",
        "comms_logger",
        "compile",
        "csv_monitor",
        "dataloader_drop_last",
        "datastates_ckpt",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "expert_parallel",
        "flops_profiler",
        "fp16",
        "gradient_predivide_factor",
        "hybrid_engine",
        "log_level",
        "memory_breakdown",
        "prescale_gradients",
        "steps_per_print",
        "tensorboard",
        "timers",
        "use_data_before_expert_parallelism",
        "vocabulary_size",
        "wall_clock_breakdown",
        "wandb",
        "weight_quantization",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
"""Top-level keys that may be given."""

_SCHEMAS = {
    "zero_optimization": ("deepspeed.runtime.zero.config", "DeepSpeedZeroConfig"),
    "bf16": ("deepspeed.runtime.precision_config", "DeepSpeedBF16Config"),
    "fp16": ("deepspeed.runtime.precision_config", "DeepSpeedFP16Config"),
}


def refuse_unknown(extra: Mapping[str, Any]) -> None:
    """Refuse top-level keys that DeepSpeed would ignore.

    Args:
        extra: The `deepspeed` section.

    Raises:
        UserError: For the first unknown key, with the one that may have been meant.
    """
    for key, value in extra.items():
        if key not in KNOWN:
            raise UserError(f"deepspeed.{key} = {show(value)}: no key of DeepSpeed 0.19; {_suggest(key, KNOWN)}")


def check_sections(extra: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Have DeepSpeed's own schemas check the sections that were added to.

    Args:
        extra: The `deepspeed` section; DeepSpeed is imported, in seconds, only for the sections that it gives.
        merged: The whole configuration.

    Raises:
        UserError: For the first refused key.
    """
    for name, (module, schema) in _SCHEMAS.items():
        if extra.get(name):
            _check(f"deepspeed.{name}", merged[name], getattr(_imported(module), schema))


def _imported(module: str) -> Any:
    import torch

    if not torch.cuda.is_available():
        # Without it the import warns that there is no GPU, no news to who checks a configuration elsewhere.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    return import_module(module)


def _check(path: str, section: Mapping[str, Any], schema: type[BaseModel]) -> None:
    try:
        schema(**section)
        return
    except ValidationError as error:
        # An unknown key is the likelier cause of whatever else is wrong.
        problems = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{path} = {show(dict(section))}: {_first_line(error)}") from None
    problem = problems[0]
    location = [str(part) for part in problem["loc"]]
    key = ".".join((path, *location))
    if problem["type"] == "extra_forbidden":
        known = _names(schema, location[:-1])
        raise UserError(f"{key} = {show(problem['input'])}: no key of DeepSpeed 0.19; {_suggest(location[-1], known)}")
    own = problem.get("ctx", {}).get("error")
    if own is not None:
        # A check of a whole section has the parsed section as its input.
        given = problem["input"] if location else dict(section)
        raise UserError(f"{key} = {show(given)}: {_first_line(own)}")
    raise UserError(describe_value(key, problem))


def _names(schema: type[BaseModel], location: Iterable[str]) -> list[str]:
    """The keys of a section of DeepSpeed's, by the names that its documentation uses."""
    for part in location:
        field = next(field for name, field in schema.model_fields.items() if part in (name, field.alias))
        found = [item for item in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(item)]
        if not found:
            return []
        schema = found[0]
    return [field.alias or name for name, field in schema.model_fields.items()]


def _is_model(item: Any) -> bool:
    return isinstance(item, type) and issubclass(item, BaseModel)


def _suggest(wrong: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(sorted(known))}"


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
