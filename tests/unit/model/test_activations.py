"""The count of activations against what torch really holds between a block's forward and backward pass."""

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from megaqk.config.loading import build_config
from megaqk.model.activations import count_activations
from megaqk.model.batch import plain_positions
from megaqk.model.block import Block
from megaqk.model.context import model_context
from megaqk.model.vocab_size import Vocabulary

SAMPLES, LENGTH, HIDDEN = 3, 128, 96
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def held(layers: Sequence[nn.Module], dtype: torch.dtype) -> int:
    """Bytes that the forward pass of layers leaves behind, their output included and their input not."""
    hidden = torch.randn(SAMPLES, LENGTH, HIDDEN, dtype=dtype, requires_grad=True)
    stream = hidden, plain_positions(torch.zeros(SAMPLES, LENGTH, dtype=torch.int64))
    gc.disable()  # what earlier passes left would count as freed here
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        for layer in layers:
            stream = layer(stream)
    gc.enable()
    assert stream[0].requires_grad
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    return sum(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "model",
    [
        {"preset": "gpt"},
        {"preset": "llama"},
        {"preset": "llama", "num_kv_heads": 2},
        {"preset": "gpt", "feed_forward": "relu_squared", "norm": "rmsnorm", "bias": False},
        {"preset": "gpt", "feed_forward": "geglu", "positions": "none"},
        {"preset": "gpt", "dropout": 0.1},
        {"preset": "gpt", "attention_dropout": 0.1},
        {"preset": "llama", "attention_dropout": 0.1},
        {"preset": "llama", "qk_norm": True},
        {"preset": "gpt", "qk_norm": True},
    ],
    ids=str,
)
def test_a_block(model: dict[str, Any], precision: str, recompute: str) -> None:
    training = {"global_batch_size": SAMPLES, "micro_batch_size": SAMPLES, "sequence_length": LENGTH}
    sections = {
        "model": {"num_layers": 3, "hidden_size": HIDDEN, "num_heads": 6, **model},
        "training": {"precision": precision, "recompute": recompute, **training},
    }
    config = build_config(sections)
    context = model_context(config, tokens=100, rows=100)
    blocks = [Block(context, index).to(DTYPES[precision]).train() for index in range(3)]
    for parameter in nn.ModuleList(blocks).parameters():
        nn.init.ones_(parameter)
    held(blocks, DTYPES[precision])  # whatever is made once
    # Of two blocks that follow each other: what one adds.
    kept = held(blocks, DTYPES[precision]) - held(blocks[:2], DTYPES[precision])
    count = count_activations(config, Vocabulary(tokens=100, rows=100), cuda=False)
    assert kept == pytest.approx(count.block, rel=0.05 if config.model.attention_dropout else 0.02)
