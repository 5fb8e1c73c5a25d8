"""The DeepSpeed configuration, derived from ours."""

from typing import Any

from megaqk.config.root import Config


def zero_stage_in_use(config: Config, *, data: int) -> int:
    """The stage of ZeRO that DeepSpeed is given for `data` replicas.

    One replica has nobody to share with: in fp32 ZeRO-1 would only copy gradients and weights to and fro. In 16 bits
    it also keeps the fp32 weights.
    """
    alone = data == 1 and config.training.precision == "fp32" and config.deepspeed.offload_optimizer == "none"
    return 0 if alone and config.parallel.zero_stage == 1 else config.parallel.zero_stage


def deepspeed_config(config: Config, *, micro_batches: int, cuda: bool = False) -> dict[str, Any]:
    """What DeepSpeed is told about a run; what it does by default and we want is left out.

    Args:
        config: The run.
        micro_batches: Forward and backward passes of one replica in a step.
        cuda: Whether it runs on CUDA devices.

    Returns:
        A configuration for `deepspeed.initialize`.
    """
    training, parallel, deepspeed = config.training, config.parallel, config.deepspeed
    replicas = training.global_batch_size // (training.micro_batch_size * micro_batches)
    stage = zero_stage_in_use(config, data=replicas)
    scale = deepspeed.model_dump(include={"initial_scale_power", "loss_scale_window"})
    zero = deepspeed.model_dump(exclude=set(scale)) | {
        "stage": stage,
        # Whole or not at all: with a ratio, the part left on the GPU has a copy of the first group's learning rate,
        # which no schedule reaches.
        "offload_optimizer": {"device": deepspeed.offload_optimizer},
    }
    if deepspeed.overlap_comm is None or stage == 0:
        # The pipeline engine switches it off with a warning; on a CPU there is no second stream to overlap with.
        zero["overlap_comm"] = cuda and parallel.pipeline == 1 and stage > 0
    return {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": micro_batches,
        # Always given, since DeepSpeed's default clips at 1. With 0 it clips nothing and still computes the norm.
        "gradient_clipping": config.optimizer.grad_clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16", **scale},
        # The default is the model's dtype, which loses small gradients over many micro-batches.
        "data_types": {"grad_accum_dtype": "fp32" if training.precision == "bf16" else None},
        # So is this default, which would round what was accumulated in fp32, even with nobody to sum with.
        "communication_data_type": None if training.precision == "fp32" else "fp32",
        "pipeline": {
            # Partitioned transfers cut the activation over the tensor-parallel ranks and trust that all of them hold
            # the same one, which is wrong under sequence parallelism; there each sends its own part in any case.
            "pipe_partitioned": False,
            "grad_partitioned": False,
        },
        # Progress, speed and timings are ours to report.
        "timers": {"throughput": {"enabled": False}},
    }
