import numpy as np
import torch

from megaqk.config.model import ModelConfig
from megaqk.model.batch import plain_positions
from megaqk.model.context import ModelContext
from megaqk.model.decoder import Decoder
from megaqk.model.init import initialize
from megaqk.parallel.cross_entropy import vocab_parallel_cross_entropy
from megaqk.parallel.tensor_parallel import TensorParallel
from megaqk.training.batches import document_layout

EOD = 9


def test_layout_by_hand() -> None:
    positions, scored = document_layout(np.array([[5, 6, EOD, 1, EOD, EOD, 2], [1, 2, 3, 4, 5, 6, EOD]]), EOD)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5, 6]]
    assert scored.astype(int).tolist() == [[1, 1, 0, 1, 0, 0, 1], [1, 1, 1, 1, 1, 1, 0]]


def test_a_packed_row_is_its_documents_run_apart() -> None:
    model = ModelConfig(num_layers=2, hidden_size=16, num_heads=2, init_std=0.3)
    context = ModelContext(model=model, rows=10, tokens=10, max_positions=32, separate_documents=True)
    decoder = Decoder(context)
    initialize(decoder.global_parameters(), context, seed=0)

    def losses(inputs: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        positions = plain_positions(inputs[None]) if positions is None else positions
        logits = decoder.logits((inputs[None], positions))
        return vocab_parallel_cross_entropy(
            logits, labels[None], first=0, tokens=logits.shape[-1], tp=TensorParallel()
        )[0]

    rng = np.random.default_rng(0)
    documents = [torch.from_numpy(np.append(rng.integers(0, 9, length), EOD)) for length in (6, 1, 0, 13, 4)]
    row = torch.cat(documents)
    positions, scored = document_layout(row[None, :-1].numpy(), EOD)
    packed = losses(row[:-1], row[1:], torch.from_numpy(positions))[torch.from_numpy(scored[0])]
    apart = [losses(document[:-1], document[1:]) for document in documents if len(document) > 1]
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-5, atol=1e-5)
