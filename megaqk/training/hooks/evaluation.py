"""Validation while training, and the test at its end."""

import math

import torch.distributed as dist

from megaqk.data.tokenizer import load_tokenizer
from megaqk.training.evaluated_texts import EvaluatedText
from megaqk.training.label_counter import LabelCounter
from megaqk.training.trainer import Hook, Step, Trainer


def perplexity_of(loss: float) -> float:
    """Perplexity of a mean loss in nats a token, without overflow."""
    return math.exp(min(loss, 700.0))


class Evaluation(Hook):
    """Every `evaluation.every` steps and at the end: loss, perplexity and bits per byte of each text.

    Nats a token depend on how a tokenizer cuts; bits per byte of the text that the labels stand for do not.
    """

    def start(self, run: Trainer) -> None:
        """Learn what the tokens stand for, where it is counted."""
        path, here = run.inputs.prepared.tokenizer, run.world.coordinate
        # The other ranks of a tensor-parallel group and the later stages have the same labels.
        self._counts = run.inputs.evaluated != () and here.tensor == here.pipeline == 0
        self._token_bytes = None
        if self._counts and path is not None:
            self._token_bytes = load_tokenizer(path, run.config.data.eod_token).token_bytes()

    def step(self, run: Trainer, step: Step) -> None:
        """Evaluate when it is due."""
        texts = [one for one in run.inputs.evaluated if step.last or not one.at_the_end]
        if not texts or not step.due(run.config.evaluation.every):
            return
        run.checked_loss()
        with run.speed.aside():
            measured = {
                f"{one.prefix}{name}": value for one in texts for name, value in self._measure(run, one).items()
            }
        run.record({"step": step.progress.step, "tokens": step.progress.tokens, **measured})

    def _measure(self, run: Trainer, text: EvaluatedText) -> dict[str, float]:
        world, batches = run.world, run.batches(text.dataset)
        counter = LabelCounter(self._token_bytes, run.inputs.prepared.eod_id)
        rounds = batches.micro_batches(text.samples)
        read = run.pulse.beats(batches.read(0, rounds, text.samples))
        total = float(run.engine.evaluate(counter.counted(read) if self._counts else read, rounds))
        counts = counter.counts.to(world.device)
        dist.all_reduce(counts)
        labels, size = counts.tolist()
        loss = total / max(labels, 1)
        found = {"loss": loss, "perplexity": perplexity_of(loss)}
        return found | ({"bits_per_byte": total / math.log(2) / size} if size else {})
