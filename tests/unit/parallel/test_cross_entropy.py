from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megaqk.parallel import cross_entropy
from megaqk.parallel.cross_entropy import vocab_parallel_cross_entropy
from megaqk.parallel.tensor_parallel import TensorParallel

TOKENS, ROWS = 37, 40
Loss = Callable[[Tensor, Tensor], Tensor]


def ours(logits: Tensor, labels: Tensor, **settings: Any) -> Tensor:
    return vocab_parallel_cross_entropy(logits, labels, first=0, tokens=TOKENS, tp=TensorParallel(), **settings)


def theirs(logits: Tensor, labels: Tensor) -> Tensor:
    scores = logits[..., :TOKENS].flatten(0, 1)
    return F.cross_entropy(scores, labels.flatten(), ignore_index=-100, reduction="none").view_as(labels)


def gradient(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits that a product has made, weighted unevenly over the tokens."""
    leaf = logits.clone().requires_grad_()
    weights = torch.linspace(0.1, 2, labels.numel(), dtype=torch.float32).view_as(labels)
    (loss(leaf * 1, labels) * weights).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(3, 11, ROWS, generator=generator)
    labels = torch.randint(TOKENS, (3, 11), generator=generator)
    labels[0, :4] = labels[2] = -100
    return logits, labels


@pytest.mark.parametrize("chunk", [1, 100, 10_000])
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradient_are_torch_s(
    case: tuple[Tensor, Tensor], chunk: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "_CHUNK_ON_CPU", chunk)
    logits, labels = case
    torch.testing.assert_close(ours(logits.clone(), labels, compiled=compiled), theirs(logits, labels))
    grad = gradient(lambda x, y: ours(x, y, compiled=compiled), logits, labels)
    torch.testing.assert_close(grad, gradient(theirs, logits, labels))
    assert not grad[..., TOKENS:].any(), "padding must not learn"


def test_bf16_logits_lose_only_their_own_rounding(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case[0].bfloat16(), case[1]
    exact = gradient(theirs, logits.double(), labels)
    torch.testing.assert_close(
        ours(logits.clone(), labels).double(), theirs(logits.double(), labels), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(gradient(ours, logits, labels).double(), exact, rtol=2**-8, atol=1e-30)


def test_the_backward_pass_needs_no_memory_of_the_size_of_the_logits() -> None:
    logits = torch.randn(4, 512, 4096).requires_grad_()
    loss = vocab_parallel_cross_entropy(
        logits * 1, torch.zeros(4, 512, dtype=torch.long), first=0, tokens=4096, tp=TensorParallel()
    ).sum()
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    # The product's own gradient is of that size, and nothing else.
    assert peak < 1.2 * logits.nbytes
    del loss


def test_a_second_backward_pass_is_refused(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    loss = ours(logits.clone().requires_grad_() * 1, labels).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
