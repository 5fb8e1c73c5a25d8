"""The DeepSpeed configuration, derived from ours."""

from typing import Any

from megaqk.config.checks import Layout
from megaqk.config.root import Config


def deepspeed_config(config: Config, layout: Layout, *, cuda: bool = False) -> dict[str, Any]:
    """What DeepSpeed is told about a run.

    Args:
        config: The run.
        layout: Its layout over the processes.
        cuda: Whether it runs on CUDA devices.

    Returns:
        A configuration for `deepspeed.initialize`.
    """
    training, parallel, deepspeed = config.training, config.parallel, config.deepspeed
    zero: dict[str, Any] = {
        "stage": parallel.zero_stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        # It would reorder gradients by rank, and with them the sums.
        "round_robin_gradients": False,
        # The pipeline engine switches it off with a warning; on a CPU there is no second stream to overlap with.
        "overlap_comm": cuda and parallel.pipeline == 1 and parallel.zero_stage > 0
        if deepspeed.overlap_comm is None
        else deepspeed.overlap_comm,
        # Whole or not at all: with a ratio, the part left on the GPU has a copy of the first group's learning rate,
        # which no schedule reaches.
        "offload_optimizer": {"device": "cpu"} if deepspeed.offload_optimizer == "cpu" else None,
        **deepspeed.model_dump(
            include={
                "reduce_bucket_size",
                "allgather_bucket_size",
                "stage3_prefetch_bucket_size",
                "stage3_param_persistence_threshold",
                "stage3_max_live_parameters",
            }
        ),
    }
    derived: dict[str, Any] = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": layout.micro_batches,
        # Always given, since DeepSpeed's default clips at 1. With 0 it clips nothing and still computes the norm.
        "gradient_clipping": config.optimizer.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {
            "enabled": training.precision == "fp16",
            **deepspeed.model_dump(include={"initial_scale_power", "loss_scale_window"}),
        },
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
    return derived
