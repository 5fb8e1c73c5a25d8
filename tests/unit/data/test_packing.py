import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from megaqk.data.packing import document_layout

EOD = 9


def test_layout_by_hand() -> None:
    layout = document_layout(np.array([[5, 6, EOD, 1, EOD, EOD, 2], [1, 2, 3, 4, 5, 6, EOD]]), EOD)
    assert layout.positions.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]]
    assert layout.documents.tolist() == [[0, 0, 0, 1, 1, 2, 3], [0] * 7]
    assert layout.loss_mask.astype(int).tolist() == [[1, 1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]]
    assert layout.boundaries.tolist() == [0, 3, 5, 6, 7, 14]
    assert layout.longest == 7


class Attending(nn.Module):
    """Two layers of attention with learned positions: all that a document could leak through."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(10, 16), nn.Embedding(64, 16)
        self.projections = nn.ModuleList(nn.Linear(16, 48) for _ in range(2))
        self.head = nn.Linear(16, 10)

    def forward(self, tokens: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
        hidden = self.tokens(tokens) + self.positions(positions)
        for projection in self.projections:
            query, key, value = projection(hidden).unsqueeze(0).chunk(3, dim=-1)
            hidden = hidden + F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).squeeze(0)
        return self.head(hidden)


def test_a_packed_row_is_its_documents_run_apart() -> None:
    torch.manual_seed(0)
    model = Attending().double()
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 9, length), EOD) for length in (6, 1, 0, 13, 4)]
    row = np.concatenate(documents)
    inputs, labels = row[None, :-1], torch.from_numpy(row[1:])
    layout = document_layout(inputs, EOD)
    number = torch.from_numpy(layout.documents[0])
    allowed = (number[:, None] == number[None, :]).tril()
    logits = model(torch.from_numpy(inputs[0]), torch.from_numpy(layout.positions[0]), allowed)
    packed = F.cross_entropy(logits, labels, reduction="none")[torch.from_numpy(layout.loss_mask[0])]

    apart = []
    for document in map(torch.from_numpy, documents):
        length = len(document) - 1
        if length:
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            logits = model(document[:-1], torch.arange(length), causal)
            apart.append(F.cross_entropy(logits, document[1:], reduction="none"))
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-12, atol=0)
    assert layout.boundaries.tolist() == [0, *np.cumsum([len(one) for one in documents])[:-1], len(row) - 1]
