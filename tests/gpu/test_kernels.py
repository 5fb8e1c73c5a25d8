"""The device's kernels against the same formulas in float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from megaqk.model.core_attention import causal_scores, core_attention
from megaqk.parallel.cross_entropy import IGNORE_INDEX, vocab_parallel_cross_entropy
from megaqk.parallel.tensor_parallel import TensorParallel
from tests import devices

# A stand-in has no reason to be kept busy: its kernels are the CPU's.
LENGTH, TOKENS = (2048, 50257) if devices.ON_CUDA else (256, 1001)
cuda_only = pytest.mark.skipif(not devices.ON_CUDA, reason="only CUDA has a choice of kernels")
HEADS = pytest.mark.parametrize("kv_heads", [8, 2], ids=["all heads", "grouped heads"])
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str
)


def error(ours: Tensor, exact: Tensor) -> float:
    """Relative, of the whole tensor."""
    return float((ours.cpu().double() - exact).norm() / exact.norm())


def heads(device: torch.device, dtype: torch.dtype, kv_heads: int, dim: int = 64) -> list[Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, count, LENGTH, dim) for count in (8, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def exact_attention(query: Tensor, key: Tensor, value: Tensor, documents: Tensor | None) -> Tensor:
    grouped = query.shape[1] // key.shape[1]
    return causal_scores(query, key, documents).softmax(-1) @ value.repeat_interleave(grouped, dim=1)


def packed_documents() -> Tensor:
    """Positions (2, LENGTH) of documents of uneven lengths."""
    rows = []
    for lengths in ([LENGTH // 3, 1, LENGTH - LENGTH // 3 - 1], [5, LENGTH // 2, LENGTH - LENGTH // 2 - 5]):
        rows.append(torch.cat([torch.arange(n) for n in lengths]))
    return torch.stack(rows)


@HEADS
@PRECISIONS
def test_attention(device: torch.device, dtype: torch.dtype, tolerance: float, kv_heads: int) -> None:
    check_attention(device, dtype, tolerance, kv_heads)


@HEADS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str)
def test_attention_within_documents(device: torch.device, dtype: torch.dtype, tolerance: float, kv_heads: int) -> None:
    check_attention(device, dtype, tolerance, kv_heads, documents=packed_documents())


def check_attention(
    device: torch.device, dtype: torch.dtype, tolerance: float, kv_heads: int, documents: Tensor | None = None
) -> None:
    ours = heads(device, dtype, kv_heads)
    exact = [x.detach().cpu().double().requires_grad_() for x in ours]
    mixed = core_attention(*ours, documents=None if documents is None else documents.to(device))
    reference = exact_attention(*exact, documents)
    gradient = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1))
    mixed.backward(gradient.to(device, dtype))
    reference.backward(gradient.to(dtype).double())
    assert error(mixed.detach(), reference.detach()) < tolerance
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert error(mine.grad, theirs.grad) < tolerance


@cuda_only
@HEADS
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_never_holds_all_scores(device: torch.device, dtype: torch.dtype, kv_heads: int, dim: int) -> None:
    ours = heads(device, dtype, kv_heads, dim)
    with torch.profiler.profile() as profile:
        core_attention(*ours).sum().backward()
    names = {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}
    print(sorted(names))
    assert names
    assert not [name for name in names if "math" in name]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)], ids=str
)
def test_cross_entropy(device: torch.device, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 128, TOKENS, generator=generator)).to(device, dtype).requires_grad_()
    labels = torch.randint(TOKENS, (2, 128), generator=generator)
    labels[0, 3:9] = IGNORE_INDEX
    exact = logits.detach().cpu().double().requires_grad_()
    losses = vocab_parallel_cross_entropy(logits, labels.to(device), first=0, tokens=TOKENS, tp=TensorParallel())
    reference = F.cross_entropy(exact.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    losses.mean().backward()
    reference.mean().backward()
    assert losses.dtype == torch.float32
    assert error(losses.detach().flatten(), reference.detach()) < 1e-5
    assert logits.grad is not None
    assert exact.grad is not None
    assert error(logits.grad, exact.grad) < tolerance
