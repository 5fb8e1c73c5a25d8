"""A training engine driven from a test, and the plain loop that it must follow.

The plain loop knows nothing of DeepSpeed, of our parameter groups, schedules and multipliers: one decoder, one
torch.optim.AdamW, rates written out by hand.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megaqk.config.root import Config
from megaqk.model.batch import Batch, Stream, plain_positions
from megaqk.model.context import model_context
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.model.vocab_size import Vocabulary
from megaqk.optim.optimizers import OptimizerOwner
from megaqk.parallel.world import World
from megaqk.runtime.launch import Launch, read_launch
from tests.distributed.heavy_ball import FRICTION, SCALE

STEPS = 10
WARMUP = 2
HOLD, RELEASE_END = 3, 7
BATCH, LENGTH = 12, 12
TOKENS, ROWS = 100, 120
LAYERS = 4
LEARNING_RATE, MIN_RATIO, DECAY = 2e-3, 0.1, 0.1
CLIP = 0.5
BETAS, EPS = (0.9, 0.95), 1e-6

MODEL: dict[str, Any] = {
    # Every dimension divides by 2, 3 and 4 ranks, grouped key/value heads included.
    "num_layers": LAYERS,
    "hidden_size": 48,
    "num_heads": 24,
    "head_dim": 4,
    "ffn_multiple_of": 24,
    # Large enough that attention and every sublayer matter to the loss from the first step.
    "init_std": 0.1,
}
OPTIMIZER: dict[str, Any] = {
    "lr": LEARNING_RATE,
    "weight_decay": DECAY,
    "betas": BETAS,
    # Some gradients are zero but for rounding (a key bias shifts all logits of a row alike). Adam would blow the
    # rounding up to a whole step; an eps above it keeps the comparison about the mathematics.
    "eps": EPS,
    "grad_clip": CLIP,
}


@dataclass(frozen=True)
class Trace:
    """What a run did.

    Attributes:
        losses: Of each step, before its update.
        norms: Of each step's gradient, before clipping.
        weights: Whole parameters by global name, after the run.
        history: Whole parameters before the first step and after each, where asked for.
    """

    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    history: list[dict[str, Tensor]] = field(default_factory=list)


def settings(
    model: dict[str, Any],
    *,
    timing: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **parallel: Any,
) -> dict[str, Any]:
    """The configuration of a case: the model's keys, and keys of `parallel`."""
    data = parallel.pop("data", 1)
    return {
        "model": {**MODEL, **model},
        "parallel": parallel,
        "optimizer": {**OPTIMIZER, **(optimizer or {})},
        "schedule": {"kind": "cosine", "warmup_steps": WARMUP, "min_lr_ratio": MIN_RATIO},
        "qk_timing": {
            "enabled": True,
            "multiplier": 0.1,
            "unit": "steps",
            "hold": HOLD,
            "release_end": RELEASE_END,
            **(timing or {}),
        },
        "training": {
            "steps": STEPS,
            "global_batch_size": BATCH,
            # Two or more micro-batches on every data-parallel size from 1 to 4.
            "micro_batch_size": {1: 6, 2: 3, 3: 2, 4: 1}[data],
            "sequence_length": LENGTH,
            "seed": 1,
            **(training or {}),
        },
    }


def world_size(case: dict[str, Any], data: int = 1) -> int:
    """Processes of a case."""
    parallel = case["parallel"]
    return int(parallel.get("tensor", 1) * parallel.get("pipeline", 1) * data)


def world_of(case: dict[str, Any], size: int) -> World:
    """The world of a case, unconnected."""
    return World(Config.model_validate(case), Launch(world_size=size))


def batches(tokens: int = TOKENS) -> Tensor:
    """Samples of every step: (steps, batch, length + 1)."""
    return torch.randint(tokens, (STEPS, BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))


def learning_rate(step: int) -> float:
    """Warm-up over two steps, then a cosine to a tenth."""
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    way = (step - WARMUP) / (STEPS - WARMUP)
    return LEARNING_RATE * (MIN_RATIO + (1 - MIN_RATIO) * (1 + math.cos(math.pi * way)) / 2)


def held(step: int, multiplier: float = 0.1) -> float:
    """The multiplier of the upper query and key weights: held, then linearly back to 1."""
    way = min(1.0, max(0.0, (step - HOLD) / (RELEASE_END - HOLD)))
    return multiplier + (1 - multiplier) * way


def is_upper_qk(name: str) -> bool:
    """Whether the multiplier acts on the parameter of this global name."""
    _, _, rest = name.partition("layers.")
    return (
        bool(rest) and int(rest.split(".")[0]) >= LAYERS / 2 and ("query_" in name or "key_" in name) and "qkv" in name
    )


def plain_decoder(model: dict[str, Any], *, tokens: int = TOKENS) -> Decoder:
    """The initial model of a case, whole, in this process."""
    config = Config.model_validate(settings(model))
    context = model_context(config, tokens=tokens, rows=ROWS)
    decoder = Decoder(context)
    initialize(decoder.global_parameters(), context, config.training.seed)
    return decoder


def plain_run(
    model: dict[str, Any],
    *,
    tokens: int = TOKENS,
    changes: dict[str, Any] | None = None,
    at: int = STEPS,
    heavy: Callable[[str], bool] = lambda name: False,
    forget_at: int | None = None,
) -> Trace:
    """Ten steps of the textbook loop in this process.

    Args:
        model: The model's keys.
        tokens: Ids that occur.
        changes: Values of `OPTIMIZER` that hold from step `at` on: betas, eps, grad_clip.
        at: Steps taken before them.
        heavy: Names of the parameters that a heavy ball moves instead of AdamW.
        forget_at: Steps taken before the ball loses its velocity.
    """
    late = {**OPTIMIZER, **(changes or {})}
    decoder = plain_decoder(model, tokens=tokens)
    parameters = decoder.global_parameters()
    groups = [{"params": [p], "name": n, "weight_decay": DECAY if p.dim() > 1 else 0.0} for n, p in parameters.items()]
    groups = [group for group in groups if not heavy(str(group["name"]))]
    velocity = {name: torch.zeros_like(p) for name, p in parameters.items() if heavy(name)}
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, foreach=False)
    losses, norms = [], []
    for step, samples in enumerate(batches(tokens)):
        now = late if step >= at else OPTIMIZER
        for group in optimizer.param_groups:
            group.update(betas=now["betas"], eps=now["eps"])
            group["lr"] = learning_rate(step) * (held(step) if is_upper_qk(group["name"]) else 1.0)
        loss = decoder(*whole_batch(samples))
        decoder.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), now["grad_clip"]).item())
        optimizer.step()
        for name in velocity:
            past = 0.0 if step == forget_at else FRICTION
            gradient = parameters[name].grad
            assert gradient is not None
            velocity[name] = past * velocity[name] + gradient
            parameters[name].data -= SCALE * learning_rate(step) * velocity[name]
    return Trace(losses, norms, {name: p.detach().clone() for name, p in parameters.items()})


def engine_runs(cases: list[dict[str, Any]]) -> list[Trace | None]:
    """Several runs of the same world after each other, each given by the keyword arguments of `engine_run`."""
    traces = []
    for number, case in enumerate(cases):
        print(f"run {number}", flush=True)
        traces.append(engine_run(**case))
    return traces


def start_engine(
    case: dict[str, Any], tokens: int = TOKENS, owners: Sequence[OptimizerOwner] = (), rows: int = ROWS
) -> Any:
    """The engine of a case on this rank, its world connected."""
    config = Config.model_validate(case)
    world = World(config, read_launch()).connect()
    # Importing DeepSpeed looks for a device, which `connect` settles first.
    from megaqk.training.engine import TrainingEngine

    return TrainingEngine(config, world, Vocabulary(tokens=tokens, rows=rows), owners)


def at_step(step: int) -> Any:
    """The progress of a run of this driver."""
    from megaqk.training.progress import Progress

    return Progress(step=step, samples=step * BATCH, tokens=step * BATCH * LENGTH)


def engine_run(
    case: dict[str, Any],
    tokens: int = TOKENS,
    steps: int = STEPS,
    history: bool = False,
    owners: Sequence[OptimizerOwner] = (),
) -> Trace | None:
    """Steps of the training engine, on one rank of a case; the trace on rank 0."""
    engine = start_engine(case, tokens, owners)
    from tests.distributed.gathering import gather_parameters

    losses, norms, weights = [], [], []
    if history:
        weights.append(gather_parameters(engine))
    for step in range(steps):
        engine.train_step(micro_batches(engine, batches(tokens)[step]), at_step(step))
        losses.append(float(engine.loss()))
        norms.append(engine.gradient_norm())
        if history or step == steps - 1:
            weights.append(gather_parameters(engine))
    last = weights[-1]
    if last is None:
        return None
    return Trace(losses, norms, last, [w for w in weights if w is not None] if history else [])


def whole_batch(samples: Tensor) -> Batch:
    """Samples (B, S + 1) as a batch whose loss is the mean over its labels."""
    tokens, labels = samples[:, :-1], samples[:, 1:]
    return (tokens, plain_positions(tokens)), (labels, torch.tensor(1 / labels.numel()))


def micro_batches(engine: Any, samples: Tensor) -> Iterator[tuple[Stream, Tensor]]:
    """This rank's part of a global batch, as the trainer hands it out."""
    size = engine.config.training.micro_batch_size
    for index in range(engine.world.micro_batches):
        first = (index * engine.world.data + engine.world.coordinate.data) * size
        part = samples[first : first + size]
        tokens = part[:, :-1].contiguous()
        yield (tokens, plain_positions(tokens)), part[:, 1:].contiguous()
