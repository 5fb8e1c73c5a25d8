from math import log, sqrt

import pytest
import torch
from torch import Tensor

from megaqk.model.core_attention import causal_scores
from megaqk.probing import attention_statistics
from megaqk.probing.attention_statistics import AttentionStatistics

NAMES = ("attention_entropy", "attention_max_probability", "logit_std", "logit_max")


def statistics(query: Tensor, key: Tensor, documents: Tensor | None = None) -> dict[str, Tensor]:
    measured = AttentionStatistics()
    measured.add(query, key, documents)
    return measured.result()


def plain(query: Tensor, key: Tensor, documents: Tensor | None = None) -> dict[str, Tensor]:
    """The same from whole scores, row by row."""
    scores = causal_scores(query.double(), key.double(), documents)
    by_head: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for head in range(scores.shape[1]):
        rows = [row[row > -torch.inf] for sample in scores[:, head] for row in sample]
        weights = [row.softmax(0) for row in rows if len(row) > 1]
        seen = torch.cat(rows)
        by_head["attention_entropy"].append(torch.stack([-(w * w.log()).sum() / log(len(w)) for w in weights]).mean())
        by_head["attention_max_probability"].append(torch.stack([w.max() for w in weights]).mean())
        by_head["logit_std"].append(seen.std(correction=0))
        by_head["logit_max"].append(seen.max())
    return {name: torch.stack(values) for name, values in by_head.items()}


def test_hand_worked_attention() -> None:
    length, width = 6, 8
    key = torch.eye(length, width).view(1, 1, length, width)
    alike = torch.zeros(length, width)
    itself = key[0, 0] * 1000.0
    two = torch.zeros(length, width)
    two[:, :2] = 1000.0  # the first token and the second share everything; of the first row there is one alone
    result = statistics(torch.stack([alike, itself, two]).unsqueeze(0), key)
    lengths = range(2, length + 1)
    halves = sum(log(2) / log(n) for n in lengths) / len(lengths)
    torch.testing.assert_close(result["attention_entropy"], torch.tensor([1.0, 0.0, halves]).double())
    mean = sum(1 / n for n in lengths) / len(lengths)
    torch.testing.assert_close(result["attention_max_probability"], torch.tensor([mean, 1.0, 0.5]).double())
    torch.testing.assert_close(result["logit_max"], torch.tensor([0.0, 1000.0, 1000.0]).double() / sqrt(width))
    # Of 21 logits 6 are 1000 / sqrt(8) for the second head, and 11 for the third.
    deviations = [1000 / sqrt(width) * sqrt(part * (1 - part)) for part in (0, 6 / 21, 11 / 21)]
    torch.testing.assert_close(result["logit_std"], torch.tensor(deviations).double())


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("documents", [None, torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 0]])])
@pytest.mark.parametrize("elements", [1, 200, 2**21])
def test_blocks_of_rows_give_what_whole_scores_give(
    kv_heads: int, documents: Tensor | None, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_statistics, "BLOCK_ELEMENTS_ON_CPU", elements)
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 9, 6) * 3, torch.randn(2, kv_heads, 9, 6)
    torch.testing.assert_close(statistics(query, key, documents), plain(query, key, documents), rtol=1e-6, atol=1e-7)


def test_fp64_stays_fp64() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 9, 6).double(), torch.randn(2, 4, 9, 6).double()
    torch.testing.assert_close(statistics(query, key), plain(query, key), rtol=1e-13, atol=1e-14)


def test_micro_batches_add_up() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(3, 2, 7, 4), torch.randn(3, 2, 7, 4)
    parts = AttentionStatistics()
    for sample in range(3):
        parts.add(query[sample : sample + 1], key[sample : sample + 1])
    torch.testing.assert_close(parts.result(), statistics(query, key))


def test_memory_is_bounded_at_any_length() -> None:
    shapes: list[int] = []

    class Watched(AttentionStatistics):
        def _add_rows(self, logits: Tensor, hidden: Tensor, seen: Tensor) -> None:
            shapes.append(logits.numel())
            super()._add_rows(logits, hidden, seen)

    length = 8192
    Watched().add(torch.zeros(1, 1, length, 2), torch.zeros(1, 1, length, 2))
    assert max(shapes) <= attention_statistics.BLOCK_ELEMENTS_ON_CPU < length**2 / 16


def test_bf16_is_measured_in_fp32() -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(1, 2, 8, 4).bfloat16() for _ in range(2))
    torch.testing.assert_close(statistics(query, key), plain(query, key), rtol=1e-6, atol=1e-7)
