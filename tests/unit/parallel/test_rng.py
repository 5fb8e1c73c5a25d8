"""Which masks are the same, and which are independent."""

import itertools
from typing import Any

import torch
from torch import Tensor

from megaqk.parallel.rng import DropoutRng, dropout


def masks_of(rank: int) -> dict[str, Any]:
    """The masks of a sample: of a replicated and of a sharded activation, and of other samples, layers and seeds."""
    rng = DropoutRng(seed=3, tensor_rank=rank)

    def draw(sample: int, site: str, sharded: bool = False, rng: DropoutRng = rng) -> Tensor:
        return dropout(torch.ones(1, 64, 64), 0.5, rng.seeds(sample, 1, site, sharded=sharded))

    before = torch.get_rng_state()
    masks: dict[str, Any] = {"replicated": draw(4, "1.write"), "sharded": draw(4, "1.write", True)}
    masks["recomputed"] = draw(4, "1.write")
    masks["next sample"] = draw(5, "1.write")
    masks["other layer"] = draw(4, "2.write")
    masks["other seed"] = draw(4, "1.write", rng=DropoutRng(seed=4, tensor_rank=rank))
    masks["resumed"] = draw(4, "1.write", rng=DropoutRng(seed=3, tensor_rank=rank))
    masks["state left alone"] = torch.equal(before, torch.get_rng_state())
    return masks


def test_masks() -> None:
    masks = [masks_of(0), masks_of(1)]
    for name in ("replicated", "recomputed", "next sample", "resumed"):
        assert torch.equal(masks[0][name], masks[1][name]), name
    assert not torch.equal(masks[0]["sharded"], masks[1]["sharded"])
    for own in masks:
        assert torch.equal(own["replicated"], own["recomputed"])
        assert torch.equal(own["replicated"], own["resumed"])
        assert own["state left alone"]
        different = ["replicated", "sharded", "next sample", "other layer", "other seed"]
        for a, b in itertools.combinations(different, 2):
            assert not torch.equal(own[a], own[b]), (a, b)
            # Independent masks of half the elements agree on half of them.
            assert 0.4 < float((own[a] == own[b]).float().mean()) < 0.6, (a, b)


def test_a_forward_pass_knows_its_samples() -> None:
    """Micro-batch m of replica d begins (m x replicas + d) micro-batches after the step's first sample."""
    rng = DropoutRng()
    rng.begin_step(100, micro_batch_size=4, data_rank=1, data_size=3)
    assert [rng.next_call("layers.0") for _ in range(3)] == [104, 116, 128]
    assert rng.next_call("layers.1") == 104, "layers count apart"
    rng.begin_step(200, micro_batch_size=4)
    assert [rng.next_call("layers.0") for _ in range(2)] == [200, 204]
