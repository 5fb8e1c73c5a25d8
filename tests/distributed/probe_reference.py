"""What probes must find, from whole weights and a plain model: full scores, full products, one backward pass."""

from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaqk.config.root import Config
from megaqk.model.context import model_context
from megaqk.model.decoder import Decoder
from megaqk.model.taps import TapKind

WHERE = {
    "attention.qkv.query": "query",
    "attention.qkv.key": "key",
    "attention.qkv.value": "value",
    "attention.output": "output",
    "ffn.input.up": "ffn_in",
    "ffn.input.gate": "ffn_gate",
    "ffn.output": "ffn_out",
}


def run_keeping(argv: list[str], folder: str) -> int:
    """The command, on one rank, which keeps the whole weights after each step, and what it read."""
    from megaqk.training.batches import RankBatches
    from megaqk.training.fragments import base_optimizer
    from megaqk.training.trainer import Hook, Step, Trainer
    from tests.distributed import commands
    from tests.distributed.gathering import gather_parameters

    class Keeper(Hook):
        def start(self, run: Trainer) -> None:
            self._keep(run)

        def step(self, run: Trainer, step: Step) -> None:
            self._keep(run)

        def _keep(self, run: Trainer) -> None:
            step, training = run.progress.step, run.config.training
            weights = gather_parameters(run.engine)
            armed = len(base_optimizer(run.engine.engine.optimizer)._optimizer_step_pre_hooks)
            assert not run.engine.context.taps
            if weights is None:
                return
            separate_at = run.inputs.prepared.eod_id if run.config.data.separate_documents else None
            assert run.inputs.splits.valid is not None
            probe, trained = (
                list(
                    RankBatches(
                        stream, micro_batch=training.micro_batch_size, data_rank=0, data_size=1, separate_at=separate_at
                    ).read(first, count)
                )
                for stream, first, count in (
                    (run.inputs.splits.valid, 0, run.config.probes.micro_batches),
                    (
                        run.inputs.splits.train,
                        step * training.global_batch_size,
                        training.global_batch_size // training.micro_batch_size,
                    ),
                )
            )
            tokens = run.inputs.vocabulary.tokens
            torch.save((weights, probe, trained, tokens, armed), Path(folder) / f"{step}.pt")

    return commands.run_with(argv, Keeper())


def part_of(name: str) -> tuple[str, int | None]:
    """The projection and the layer of a parameter, from its global name."""
    if not name.startswith("layers."):
        return ("final_norm" if name.startswith("final_norm") else "embedding"), None
    layer, _, rest = name.removeprefix("layers.").partition(".")
    return next((part for start, part in WHERE.items() if rest.startswith(start)), "norm"), int(layer)


def by_part(squares: dict[str, Tensor]) -> dict[str, Any]:
    """Roots of sums of squares, given by parameter, as a record has them."""
    sums: dict[tuple[str, int | None], Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
    for name, square in squares.items():
        sums[part_of(name)] += square
    found: dict[str, Any] = {}
    for (part, layer), total in sorted(sums.items(), key=lambda item: item[0][1] or 0):
        root = total.sqrt().item()
        if layer is None:
            found[part] = root
        else:
            found.setdefault(part, []).append(root)
    return found


def square(tensor: Tensor) -> Tensor:
    return tensor.double().square().sum()


def expected(config: Config, folder: Path, step: int) -> dict[str, Any]:
    """The record of a probe after a step."""
    weights, probe, _, tokens, _ = torch.load(folder / f"{step}.pt", weights_only=True)
    context = model_context(config, tokens=tokens, rows=len(weights["embedding.weight"]))
    decoder = Decoder(context).eval()
    parameters = decoder.global_parameters()
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])
    shown: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    def keep(kind: TapKind, layer: int, activation: Tensor) -> None:
        shown[kind, layer].append(activation.double())

    kinds: tuple[TapKind, ...] = ("scores", "attention_residual", "ffn_residual", "attention_write", "ffn_write")
    losses, counted = torch.zeros(()), 0
    with torch.no_grad():
        for inputs, labels in probe:
            with ExitStack() as stack:
                for kind in kinds:
                    stack.enter_context(context.taps.watching(kind, partial(keep, kind)))
                losses += decoder(inputs, (labels, torch.ones(())))
            counted += int((labels >= 0).sum())
    layers, heads = range(config.model.num_layers), range(config.model.num_heads)
    record: dict[str, Any] = defaultdict(list)
    record["loss"] = float(losses) / counted
    for layer in layers:
        by_head = [scores_of(torch.cat(shown["scores", layer])[:, head]) for head in heads]
        for index, name in enumerate(("attention_entropy", "attention_max_probability", "logit_std", "logit_max")):
            record[name].append([values[index] for values in by_head])
        energy = {kind: float(torch.cat(shown[kind, layer]).square().mean()) for kind in kinds[1:]}
        record["residual_energy"].append(energy["attention_residual"])
        record["attention_write_energy"].append(energy["attention_write"] / energy["attention_residual"])
        record["ffn_write_energy"].append(energy["ffn_write"] / energy["ffn_residual"])
        query, key = (weights[f"layers.{layer}.attention.qkv.{name}_weight"].double() for name in ("query", "key"))
        record["query_norm"].append(float(query.norm()))
        record["key_norm"].append(float(key.norm()))
        size, group = config.model.head_size, config.model.num_heads // config.model.kv_heads
        products = (
            query[head * size : (head + 1) * size].T @ key[head // group * size : (head // group + 1) * size]
            for head in heads
        )
        record["qk_singular_value"].append([float(torch.linalg.svdvals(product)[0]) for product in products])
    if step:
        before, _, trained, _, _ = torch.load(folder / f"{step - 1}.pt", weights_only=True)
        for name, parameter in parameters.items():
            parameter.data.copy_(before[name])
        count = sum(int((labels >= 0).sum()) for _, labels in trained)
        for inputs, labels in trained:
            decoder(inputs, (labels, torch.tensor(1 / count))).backward()
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        record["gradient_norm"] = by_part({name: square(g) for name, g in gradients.items() if g is not None})
        old = by_part({name: square(weight) for name, weight in before.items()})
        change = by_part({name: square(weights[name].double() - weight.double()) for name, weight in before.items()})
        record["update_ratio"] = {
            name: [c / o for c, o in zip(change[name], old[name], strict=True)]
            if isinstance(old[name], list)
            else change[name] / old[name]
            for name in old
        }
    return dict(record)


def scores_of(scores: Tensor) -> tuple[float, float, float, float]:
    """Entropy, largest probability, deviation and maximum of the scores (B, S, S) of a head."""
    seen = scores > -torch.inf
    lengths = seen.sum(-1)
    weights = scores.softmax(-1)
    entropy = -torch.where(weights > 0, weights * weights.log(), 0).sum(-1)
    several = lengths > 1
    return (
        float((entropy[several] / lengths[several].double().log()).mean()),
        float(weights.amax(-1)[several].mean()),
        float(scores[seen].std(correction=0)),
        float(scores[seen].max()),
    )
