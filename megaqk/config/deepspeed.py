"""The DeepSpeed configuration, derived from ours."""

from collections.abc import Iterator, Mapping
from typing import Any

from megaqk.config.deepspeed_keys import check_sections, refuse_unknown
from megaqk.config.root import Config
from megaqk.config.yaml_text import show
from megaqk.errors import UserError

BUCKET_ELEMENTS = 50_000_000
"""ZeRO's communication buckets. Its default of 5e8 elements allocates 2 GB in fp32, whatever the model's size."""

OWNED: dict[str, str] = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and training.micro_batch_size",
    "gradient_clipping": "optimizer.grad_clip",
    "optimizer": "optimizer.lr and its neighbours",
    "zero_allow_untested_optimizer": "optimizer.implementation",
    "scheduler": "schedule.kind and its neighbours",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.compute_grad_norm": "the norm is always logged",
    "zero_optimization.round_robin_gradients": "it reorders the gradients by rank, and with them the sums",
    # With it the part on the GPU has a copy of the first group's learning rate, which no schedule reaches.
    "zero_optimization.offload_optimizer.ratio": "an optimizer offloaded in part ignores the schedule",
    "zero_optimization.offload_optimizer.super_offload": "optimizer.implementation",
    "bf16.enabled": "training.precision",
    "bf16.immediate_grad_update": "training.precision",
    "bfloat16": "training.precision",
    "fp16.enabled": "training.precision",
    "amp": "training.precision",
    "torch_autocast": "training.precision",
    "data_types": "training.precision",
    "communication_data_type": "training.precision",
    "seq_parallel_communication_data_type": "training.precision",
    "activation_checkpointing": "training.recompute",
    "tensor_parallel": "parallel.tensor",
    "sequence_parallel_size": "parallel.sequence",
    "pipeline": "parallel.sequence and training.recompute",
    "gradient_allreduce_op": "the gradient is the mean over the global batch",
    "managed_gradient_accumulation": "training.micro_batch_size",
    "zero_optimization.zenflow": "it updates a part of the weights with old gradients",
    "data_efficiency": "it changes which tokens are learned from; data and training decide that",
    "elasticity": "training.global_batch_size",
    "checkpoint.load_universal": "a run goes on from the checkpoints in run.dir",
}
"""DeepSpeed keys that our schema decides, and the key of ours to use instead or the reason."""


def deepspeed_config(config: Config, world: Any, *, cuda: bool = False) -> dict[str, Any]:
    """What DeepSpeed is told about a run.

    Args:
        config: The run.
        world: Its `World`.
        cuda: Whether it runs on CUDA devices.

    Returns:
        A configuration for `deepspeed.initialize`, with the keys of `config.deepspeed` merged in.

    Raises:
        UserError: Where `config.deepspeed` sets a key that our schema decides or that DeepSpeed does not know, or a
            value that DeepSpeed refuses.
    """
    training, parallel = config.training, config.parallel
    derived: dict[str, Any] = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": world.micro_batches,
        # Always given, since DeepSpeed's default clips at 1. With 0 it clips nothing and still computes the norm.
        "gradient_clipping": config.optimizer.grad_clip,
        "zero_optimization": {
            "stage": parallel.zero_stage,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            # The pipeline engine switches it off with a warning; on a CPU there is no second stream to overlap with.
            "overlap_comm": cuda and parallel.pipeline == 1 and parallel.zero_stage > 0,
            # It would reorder gradients by rank, and with them the sums.
            "round_robin_gradients": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
        "pipeline": {
            # Partitioned transfers cut the activation over the tensor-parallel ranks and trust that all of them hold
            # the same one, which is wrong under sequence parallelism; there each sends its own part in any case.
            "pipe_partitioned": False,
            "grad_partitioned": False,
        },
        # Progress, speed and timings are ours to report.
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
    }
    if training.precision == "bf16":
        # The default is the model's dtype, which loses small gradients over many micro-batches.
        derived["data_types"] = {"grad_accum_dtype": "fp32"}
    _refuse_owned(config.deepspeed)
    refuse_unknown(config.deepspeed)
    merged = _merge(derived, config.deepspeed, "deepspeed")
    if merged["wall_clock_breakdown"] and not merged["steps_per_print"]:
        raise UserError("deepspeed.wall_clock_breakdown = true: must come with deepspeed.steps_per_print above 0")
    check_sections(config.deepspeed, merged)
    return merged


def _refuse_owned(extra: Mapping[str, Any]) -> None:
    for path, value in _paths(extra):
        if path in OWNED:
            ours = OWNED[path]
            advice = f"use {ours}" if "." in ours.split()[0] else ours
            raise UserError(f"deepspeed.{path} = {show(value)}: must not be given; {advice}")


def _paths(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested mappings, inner nodes included, as a dotted path with its value."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def _merge(base: Mapping[str, Any], extra: Mapping[str, Any], path: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        if isinstance(base.get(key), Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"{path}.{key} = {show(value)}: must be a mapping of keys")
            merged[key] = _merge(base[key], value, f"{path}.{key}")
        else:
            merged[key] = value
    return merged
