"""One measured process, or rank, of `train.py`: times optimizer steps of one implementation on random tokens."""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
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
MICRO_BATCHES = 8
MICRO_BATCH_SIZE = 2
TOKENS_PER_STEP = MICRO_BATCHES * MICRO_BATCH_SIZE * SEQUENCE_LENGTH
OPTIMIZER = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
GRAD_CLIP = 1.0


def micro_batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(SHAPE["vocab_size"], (count, MICRO_BATCH_SIZE, SEQUENCE_LENGTH + 1), generator=generator)
    return [(sample[:, :-1].contiguous(), sample[:, 1:].contiguous()) for sample in samples]


def median_seconds(step: Callable[[int], Any], steps: int) -> float:
    """Median over steps, after one that warms up."""
    times = []
    for index in range(steps + 1):
        began = time.perf_counter()
        step(index)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def measure_megaqk(preset: str, axes: dict[str, int], steps: int) -> dict[str, float]:
    from megaqk.config.loading import build_config
    from megaqk.model.batch import plain_positions
    from megaqk.model.vocab_size import Vocabulary
    from megaqk.parallel.world import World
    from megaqk.runtime.launch import read_launch

    config = build_config(
        {
            "model": {"preset": preset, **SHAPE},
            "parallel": {**axes, "zero_stage": 1, "layers_per_stage": STAGES if axes["pipeline"] > 1 else None},
            "optimizer": {**OPTIMIZER, "betas": list(OPTIMIZER["betas"]), "grad_clip": GRAD_CLIP},
            "qk_timing": {"enabled": True},
            "training": {
                "global_batch_size": MICRO_BATCHES * MICRO_BATCH_SIZE,
                "micro_batch_size": MICRO_BATCH_SIZE,
                "sequence_length": SEQUENCE_LENGTH,
            },
        }
    )
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

    seconds = median_seconds(step, steps)
    return {
        "seconds": seconds,
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

        return median_seconds(record, 200)


def measure_transformers(preset: str, steps: int) -> dict[str, float]:
    """The loop a transformers user writes: the same shape, micro-batches, clipping and fused torch AdamW."""
    model = transformers_model(preset)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **OPTIMIZER)
    batches = micro_batches(MICRO_BATCHES)

    def micro_batches_of_tokens() -> Iterator[Tensor]:
        for tokens, labels in batches:
            yield torch.cat([tokens, labels[:, -1:]], dim=1)[:, :SEQUENCE_LENGTH]

    def step(index: int) -> None:
        for tokens in micro_batches_of_tokens():
            (model(input_ids=tokens, labels=tokens, use_cache=False).loss / MICRO_BATCHES).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"seconds": median_seconds(step, steps), "parameters": sum(p.numel() for p in model.parameters())}


def transformers_model(preset: str) -> torch.nn.Module:
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
    parser.add_argument("implementation", choices=["megaqk", "transformers"])
    parser.add_argument("preset", choices=["gpt", "llama"])
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--pipeline", type=int, default=1)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--result", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.implementation == "transformers":
        result = measure_transformers(arguments.preset, arguments.steps)
    else:
        axes = {"tensor": arguments.tensor, "pipeline": arguments.pipeline}
        result = measure_megaqk(arguments.preset, axes, arguments.steps)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        arguments.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
