"""Documents packed into one sample against the same documents run apart."""

import pytest
import torch

from megaqk.config.model import ModelConfig
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.core_attention import document_attention, document_mask, flex_document_attention
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize

VOCAB = 61
LENGTHS = [[5, 1, 7, 3], [16]]  # documents of each row of the batch; both add up to 16


def packed_positions() -> torch.Tensor:
    return torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])


def build(preset: str, recompute: str) -> Decoder:
    model = ModelConfig(
        preset=preset, num_layers=2, hidden_size=24, num_heads=4, num_kv_heads=2, init_std=0.2, head_dim=6
    )
    context = ModelContext(
        model=model, rows=VOCAB, tokens=VOCAB, max_positions=16, separate_documents=True, recompute=recompute
    )
    decoder = Decoder(context)
    initialize(decoder.global_parameters(), context, seed=5)
    return decoder


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("preset", ["gpt", "llama"])
def test_packing_equals_running_the_documents_apart(preset: str, recompute: str) -> None:
    decoder = build(preset, recompute)
    tokens = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 16, VOCAB, generator=torch.Generator().manual_seed(1))
    packed = decoder.logits((tokens, packed_positions()))
    (packed * weights).sum().backward()
    packed_gradients = {n: p.grad.clone() for n, p in decoder.global_parameters().items()}
    decoder.zero_grad()
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            part = slice(start, start + length)
            document = tokens[row : row + 1, part]
            alone = decoder.logits((document, plain_positions(document)))
            torch.testing.assert_close(packed[row : row + 1, part], alone, rtol=1e-5, atol=1e-5)
            (alone * weights[row : row + 1, part]).sum().backward()
            start += length
    for name, parameter in decoder.global_parameters().items():
        torch.testing.assert_close(packed_gradients[name], parameter.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_documents_do_not_see_each_other() -> None:
    decoder = build("llama", "none")
    tokens = torch.randint(VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 2] = (changed[0, 2] + 1) % VOCAB  # in the first document of the first row
    before, after = (decoder.logits((x, packed_positions())) for x in (tokens, changed))
    assert torch.equal(before[0, 5:], after[0, 5:])
    assert not torch.equal(before[0, 2:5], after[0, 2:5])


def test_flex_attention_agrees_with_attention_apart() -> None:
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(2, 4, 16, 8, generator=generator)
    key, value = (torch.randn(2, 2, 16, 8, generator=generator) for _ in range(2))
    positions = packed_positions()
    apart = document_attention(query, key, value, positions)
    torch.testing.assert_close(flex_document_attention(query, key, value, positions), apart, rtol=1e-5, atol=1e-6)


def test_the_layers_of_a_micro_batch_share_its_mask() -> None:
    first, second = packed_positions(), packed_positions()
    mask = document_mask(first)
    assert document_mask(first) is mask
    assert document_mask(second) is not mask
