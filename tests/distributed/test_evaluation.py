"""Evaluation reads every sample once: one loss on every topology and for every batch size, and its bits per byte."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models

from megaqk.checkpoint.reader import Checkpoint
from megaqk.model.batch import plain_positions
from tests.distributed import commands, driver
from tests.distributed.evaluating import Stream, mean_loss
from tests.distributed.layouts import TOKENS, Layout
from tests.harness import run_distributed

MODEL = {"preset": "llama", "num_kv_heads": 12}


def losses_of(layouts: Sequence[Layout], sizes: Sequence[int]) -> list[dict[int, float]]:
    """The mean loss of the samples by size of micro-batches, on one rank of layouts of one world size."""
    from megaqk.training import engine as training_engine

    training_engine.EVALUATED_AT_ONCE = 1  # all of them are few
    found = []
    for layout in layouts:
        print(layout, flush=True)
        engine = driver.start_engine(layout.case(MODEL), TOKENS, rows=layout.rows)
        # A pipeline sends activations of one shape alone.
        mine = sizes if layout.pipeline == 1 else [engine.config.training.micro_batch_size]
        found.append({size: mean_loss(engine, TOKENS, size) for size in mine})
    return found


@pytest.mark.parametrize(
    "layouts",
    [
        [Layout(zero=0)],
        [Layout(tensor=2, data=2, zero=2), Layout(pipeline=2, data=2), Layout(pipeline=4, layers=(0, 1, 3, 0))],
    ],
    ids=["one-process", "four"],
)
def test_losses_are_those_of_a_plain_model_for_every_batch_size(layouts: list[Layout]) -> None:
    """On the other topologies `test_any_topology` holds the losses of one against another."""
    samples = Stream(TOKENS).samples
    tokens, labels = samples[:, :-1], samples[:, 1:]
    with torch.no_grad():
        decoder = driver.plain_decoder(MODEL, tokens=TOKENS)
        expected = float(decoder((tokens, plain_positions(tokens)), (labels, torch.tensor(1 / labels.numel()))))
    world = layouts[0].world
    ranks = run_distributed(losses_of, world, layouts, [1, 2, 3, 16], init=False, timeout=100)
    assert ranks == [ranks[0]] * world
    for losses in ranks[0]:
        assert losses == {size: pytest.approx(expected, rel=1e-6) for size in losses}


def records(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "valid_loss" in line]


def test_sets_and_the_test_part_on_one_process_and_on_four(
    tmp_path: Path,
    write_config: Callable[..., Path],
    data_section: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "short.jsonl").write_text("".join(f'{{"text": "nine old dogs {n}"}}\n' for n in range(9)))
    [corpus] = Path(data_section["cache_dir"]).glob("*/corpus.bin")
    sets = [
        {"name": "short", "text": str(tmp_path / "short.jsonl")},
        {"name": "again", "corpus": str(corpus.with_suffix("")), "batches": 1},
    ]
    evaluation = {"every": 2, "batches": None, "sets": sets, "test": True}
    runs = {}
    for name, world, micro_batch, parallel in (("one", 1, 4, {}), ("four", 4, 1, {"pipeline": 2})):
        training = {"steps": 4, "micro_batch_size": micro_batch}
        # A cache of its own: what is prepared here is no other test's.
        data = {**data_section, "cache_dir": str(tmp_path / "cache")}
        sections = {"training": training, "evaluation": evaluation, "parallel": parallel, "data": data}
        config = write_config(tmp_path / name, **sections, checkpoint={"every": 2})
        argv = ["pretrain", str(config)]
        assert run_distributed(commands.run_command, world, argv, init=False, timeout=100) == [0] * world
        runs[name] = records(tmp_path / name)
    texts = ["valid_", "valid/short/", "valid/again/"]
    middle, end = runs["one"]
    names = [f"{text}{what}" for text in texts for what in ("loss", "perplexity", "bits_per_byte")]
    assert list(middle) == ["step", "tokens", *names]
    assert list(end) == [*middle, "test_loss", "test_perplexity", "test_bits_per_byte"], "once, at the end"
    assert runs["four"] == [pytest.approx(record, rel=1e-5) for record in runs["one"]]
    result = json.loads((tmp_path / "one" / "run" / "result.json").read_text())
    assert {name: result[name] for name in end if name.startswith("test_")} == {
        name: value for name, value in end.items() if name.startswith("test_")
    }
    # A run does not go on from an average, wherever in its folder that lies.
    kept = tmp_path / "one" / "run" / "checkpoints"
    steps = [str(kept / f"step-{step}") for step in (2, 4)]
    average = ["average", *steps, "--output", str(kept / "step-9")]
    assert run_distributed(commands.run_command, 1, average, init=False, timeout=60) == [0]
    made, (first, second) = Checkpoint(kept / "step-9"), map(Checkpoint, steps)
    for parameter in first.parameters:
        mean = (first.weight(parameter).double() + second.weight(parameter)) / 2
        assert torch.equal(made.weight(parameter), mean.float())
    capfd.readouterr()
    again = ["pretrain", str(tmp_path / "one" / "config.yaml"), "training.steps=6"]
    assert run_distributed(commands.run_command, 1, again, init=False, timeout=60) == [2]
    [line] = [line for line in capfd.readouterr().out.splitlines() if line.startswith("megaqk: error")]
    assert "step-9: is an average of 2 checkpoints, without optimizer state" in line


def letters(path: Path, size: int, pairs: bool) -> None:
    """A tokenizer of so many tokens: an end of document, letters, a pair of them if asked for, what never occurs."""
    pieces = ["<|endoftext|>", "a", "b", *(["ab"] if pairs else [])]
    vocab = {piece: number for number, piece in enumerate([*pieces, *(f"<{n}>" for n in range(size - len(pieces)))])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, [("a", "b")] if pairs else []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(path))


def run_uniform(argv: list[str]) -> int:
    """A command whose model knows nothing: its weights are zero, and so are all logits."""
    from megaqk.training.trainer import Hook, Trainer

    class Forget(Hook):
        def start(self, run: Trainer) -> None:
            for parameter in run.engine.parameters.values():
                parameter.data.zero_()

    return commands.run_with(argv, Forget())


def test_bits_per_byte_of_a_uniform_model_by_hand(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    """Of 4 tokens each has 2 bits and is a letter; of 16 each has 4 and is a pair of letters: 2 bits a byte both.

    An end of document has as many bits as any token, and no bytes.
    """
    texts = {"train": ["ab" * 30] * 30, "long": ["ab" * 21], "short": ["ab"] * 30}
    for name, documents in texts.items():
        lines = (json.dumps({"text": document}) + "\n" for document in documents)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sets = [{"name": name, "text": str(tmp_path / f"{name}.jsonl")} for name in ("long", "short")]
    measured = {}
    for size in (4, 16):
        letters(tmp_path / f"{size}.json", size, pairs=size == 16)
        config = write_config(
            tmp_path / str(size),
            optimizer={"lr": 1e-30},
            data={
                **{"text": str(tmp_path / "train.jsonl"), "cache_dir": str(tmp_path / "cache")},
                **{"tokenizer": str(tmp_path / f"{size}.json"), "split": [0.5, 0.5, 0]},
            },
            training={"steps": 1, "sequence_length": 4},
            schedule={"kind": "constant", "warmup_steps": 0},
            evaluation={"every": 0, "batches": 1, "sets": sets},
        )
        assert run_distributed(run_uniform, 1, ["pretrain", str(config)], init=False, timeout=60) == [0]
        [measured[size]] = records(tmp_path / str(size))
        assert measured[size]["valid_loss"] == pytest.approx(math.log(size))
        assert measured[size]["valid/long/perplexity"] == pytest.approx(size)
    # 42 letters and an end: 10 samples of 4 labels, the 2nd to the 41st letter. As pairs: 5 samples, 20 pairs.
    assert measured[4]["valid/long/bits_per_byte"] == pytest.approx(2)
    assert measured[16]["valid/long/bits_per_byte"] == pytest.approx(2)
    # a b end a b end ...: 22 samples of 4 labels from the first b on, 29 of these 88 are ends.
    assert measured[4]["valid/short/bits_per_byte"] == pytest.approx(88 * 2 / 59)
    # ab end ab end ...: 14 samples of 4 labels, 28 of these 56 are ends and 28 are two bytes each.
    assert measured[16]["valid/short/bits_per_byte"] == pytest.approx(56 * 4 / 56)
    # A global batch of the validation part, 8 samples of 4 labels, is within the first document of 60 letters.
    assert measured[4]["valid_bits_per_byte"] == pytest.approx(2)
