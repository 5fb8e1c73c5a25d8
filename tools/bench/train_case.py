"""One measured process, or rank, of `train.py`: times optimizer steps of one implementation on random tokens.

Beside the seconds of each step stands what other processes used of the machine meanwhile, in cores.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# About 14M parameters (gpt) and 17M (llama): the feed-forward networks have the same number of them.
SHAPE = {"num_layers": 6, "hidden_size": 384, "num_heads": 6, "vocab_size": 8192}
# The head costs about as much as two blocks of this shape, so the last of two stages has fewer of them.
STAGES = [4, 2]
SEQUENCE_LENGTH = 512
MICRO_BATCH_SIZE = 2
WARM_UP = 2
OPTIMIZER = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
GRAD_CLIP = 1.0


def micro_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(SHAPE["vocab_size"], (count, MICRO_BATCH_SIZE, SEQUENCE_LENGTH + 1), generator=generator)
    return [(sample[:, :-1].contiguous(), sample[:, 1:].contiguous()) for sample in samples]


def busy_seconds() -> float:
    """Processor time that all processes, and other guests of the host, have used so far.

    Interrupts are left out: those of our own loopback traffic would pass for somebody else's work.
    """
    user, nice, system, _, _, _, _, steal = (int(field) for field in Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")


def timed_steps(step: Callable[[int], Any], steps: int) -> list[dict[str, float]]:
    """Take steps after some that warm up: seconds of each, and cores that others used; every rank must call it."""
    spans = []
    for index in range(WARM_UP + steps):
        before = time.perf_counter(), busy_seconds(), time.process_time()
        step(index)
        after = time.perf_counter(), busy_seconds(), time.process_time()
        spans.append([end - start for start, end in zip(before, after, strict=True)])
    spans = spans[WARM_UP:]
    own: list[Any] = [[used for _, _, used in spans]]
    if torch.distributed.is_initialized():
        own *= torch.distributed.get_world_size()
        torch.distributed.all_gather_object(own, [used for _, _, used in spans])
    return [
        {"seconds": seconds, "others": max(0.0, busy - sum(ours)) / seconds}
        for (seconds, busy, _), *ours in zip(spans, *own, strict=True)
    ]


def measure_megaqk(
    preset: str, axes: dict[str, int], overrides: Sequence[str], count: int, steps: int
) -> dict[str, Any]:
    from megaqk.config.loading import load_config
    from megaqk.config.yaml_text import format_yaml
    from megaqk.model.batch import plain_positions
    from megaqk.model.vocab_size import Vocabulary
    from megaqk.parallel.world import World
    from megaqk.runtime.launch import read_launch

    sections = {
        "model": {"preset": preset, **SHAPE},
        "parallel": {**axes, "zero_stage": 1, "layers_per_stage": STAGES if axes["pipeline"] > 1 else None},
        "optimizer": {**OPTIMIZER, "betas": list(OPTIMIZER["betas"]), "grad_clip": GRAD_CLIP},
        "qk_timing": {"enabled": True},
        "training": {
            "global_batch_size": count * MICRO_BATCH_SIZE,
            "micro_batch_size": MICRO_BATCH_SIZE,
            "sequence_length": SEQUENCE_LENGTH,
        },
    }
    with tempfile.NamedTemporaryFile("w+", suffix=".yaml") as file:
        file.write(format_yaml(sections))
        file.flush()
        config = load_config(file.name, overrides)
    world = World(config, read_launch()).connect()
    # Importing DeepSpeed looks for a device, which `connect` has settled.
    from megaqk.training.engine import TrainingEngine
    from megaqk.training.progress import Progress

    vocabulary = Vocabulary(tokens=SHAPE["vocab_size"], rows=SHAPE["vocab_size"])
    engine = TrainingEngine(config, world, vocabulary)
    batches = [((tokens, plain_positions(tokens)), labels) for tokens, labels in micro_batches(world.micro_batches)]

    def step(index: int) -> None:
        engine.train_step(iter(batches), Progress(step=index))
        engine.loss()

    return {
        "steps": timed_steps(step, steps),
        "parameters": sum(info.numel for info in engine.inventory),
        "overhead_seconds": recording_seconds(engine),
    }


def recording_seconds(engine: Any) -> float:
    """What the multiplier and a metrics record add to a step, if every step were logged."""
    from megaqk.optim.multipliers import Moment
    from megaqk.optim.rates import apply_rates
    from megaqk.training.metrics import MetricsWriter

    with tempfile.TemporaryDirectory() as folder, closing(MetricsWriter(Path(folder))) as writer:

        def record(index: int) -> None:
            rates = engine.rates.at(Moment(index))
            apply_rates(engine.engine.optimizer.param_groups, rates)
            lr = {f"lr/{rate.name}": rate.lr for rate in rates}
            multiplier = {f"multiplier/{rate.name}": rate.multiplier for rate in rates}
            others = dict.fromkeys(
                ("tokens", "loss", "grad_norm", "tokens_per_second", "mfu", "peak_memory_bytes"), 1.0
            )
            writer.write({"step": index, **others, **lr, **multiplier})

        return statistics.median(spent["seconds"] for spent in timed_steps(record, 200))


def measure_transformers(preset: str, count: int, steps: int, *, compiled: bool) -> dict[str, Any]:
    """The loop a transformers user writes: the same shape, micro-batches, clipping and fused torch AdamW."""
    model = transformers_model(preset)
    model.train()
    # Otherwise it looks the loss up at each call, with a warning that the compiler cannot trace.
    model.loss_type = "ForCausalLM"
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **OPTIMIZER)
    batches = micro_batches(count)

    def step(index: int) -> None:
        for tokens, _ in batches:
            (forward(input_ids=tokens, labels=tokens, use_cache=False).loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"steps": timed_steps(step, steps), "parameters": sum(p.numel() for p in model.parameters())}


def transformers_model(preset: str) -> Any:
    import transformers

    layers, width, heads, vocabulary = SHAPE.values()
    if preset == "gpt":
        settings = transformers.GPT2Config(
            vocab_size=vocabulary,
            n_positions=SEQUENCE_LENGTH,
            n_embd=width,
            n_layer=layers,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="sdpa",
        )
        return transformers.GPT2LMHeadModel(settings)
    settings = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width * 2 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=SEQUENCE_LENGTH,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("implementation", choices=["megaqk", "transformers", "transformers-compiled"])
    parser.add_argument("preset", choices=["gpt", "llama"])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--micro-batches", type=int, default=8, help="of a step, over all processes")
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--pipeline", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of megaqk's configuration")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    count, steps = arguments.micro_batches, arguments.steps
    if arguments.implementation == "megaqk":
        axes = {"tensor": arguments.tensor, "pipeline": arguments.pipeline}
        result = measure_megaqk(arguments.preset, axes, arguments.set, count, steps)
    else:
        compiled = arguments.implementation == "transformers-compiled"
        result = measure_transformers(arguments.preset, count, steps, compiled=compiled)
    result["seconds"] = statistics.median(step["seconds"] for step in result["steps"])
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        arguments.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
