import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from megaqk.training.heat_maps import curves, heat_maps


def test_curves_of_a_record() -> None:
    record = {
        "step": 1,
        "tokens": 5,
        "loss": 2.0,
        "attention_entropy": [[0.25, 0.75]] * 101,
        "logit_max": [[1.0, 3.0]],
        "ffn_write_energy": [0.5],
        "update_ratio": {"query": [0.1], "final_norm": 0.2},
    }
    points = curves(record)
    assert len(points) == 106
    assert points["probes/attention_entropy/layer100"] == 0.5
    assert points["probes/logit_max/layer00"] == 3.0
    assert points["probes/ffn_write_energy/layer00"] == 0.5
    assert (points["probes/update_ratio/query/layer00"], points["probes/update_ratio/final_norm"]) == (0.1, 0.2)


@pytest.mark.parametrize("steps", [[7], [0, 2, 3]])
def test_pictures_of_what_is_not_known_too(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *words, **options: drawn.append(self) or save(self, *words, **options)
    )
    by_head, by_layer = [[1.0, None], [2.0, 3.0]], [0.1, None]
    records = [
        {"step": step}
        | dict.fromkeys(("attention_entropy", "logit_max"), by_head)
        | dict.fromkeys(("attention_write_energy", "ffn_write_energy"), by_layer)
        for step in steps
    ]
    pictures = heat_maps(records)
    assert {tag.rpartition("/")[2] for tag in pictures} == {"layer_by_step", "head_by_layer"}
    assert len(pictures) == 6
    for png in pictures.values():
        pixels = imread(io.BytesIO(png))
        assert pixels.shape[:2] == (400, 600)
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10
    entropy, largest, energy = "entropy / log(row length)", "largest attention logit", "E|write|² / E|stream|²"
    bars = [figure.axes[1].get_ylabel() for figure in drawn]
    assert bars == [entropy, largest, energy, energy, entropy, largest]
