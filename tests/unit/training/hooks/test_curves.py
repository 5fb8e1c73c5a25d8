import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from megaqk.errors import UserError
from megaqk.training.hooks.curves import _draw, _groups, write_curves


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def colours(path: Path) -> int:
    with Image.open(path) as image:
        assert image.format == "PNG"
        found = image.convert("RGB").getcolors(1 << 24)
    assert found is not None
    # Anti-aliased grey is text and grid; what is left are curves.
    return sum(1 for _, (red, green, blue) in found if max(red, green, blue) - min(red, green, blue) > 90)


@pytest.mark.parametrize("groups", [2, 30])
def test_a_picture_with_curves(tmp_path: Path, groups: int) -> None:
    records: list[dict[str, Any]] = []
    for step in range(1, 60):
        rates = {f"lr/g{group}": 1e-3 * (group + 1) for group in range(groups)}
        multipliers = {f"multiplier/g{group}": min(1.0, step / 50) for group in range(groups)}
        records.append({"step": step, "loss": 5.0 / step if step != 30 else None, **rates, **multipliers})
    records.append({"step": 59, "valid_loss": 2.0, "valid_perplexity": 7.4})
    picture = tmp_path / "curves.png"
    write_curves(write_records(tmp_path / "metrics.jsonl", records), picture)
    assert colours(picture) > 3


def test_equal_curves_share_a_line_and_its_name() -> None:
    records = [{"step": step, "lr/a": 0.1 * step, "lr/b": 0.2 * step, "lr/c": 0.1 * step} for step in range(5)]
    axes = Figure().subplots()
    _draw(axes, records, _groups(records, "lr/"))
    assert [line.get_label() for line in axes.get_lines()] == ["a, c", "b"]


def test_a_single_record_is_enough(tmp_path: Path) -> None:
    write_curves(write_records(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}]), tmp_path / "curves.png")
    assert colours(tmp_path / "curves.png") > 0


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records yet"):
        write_curves(write_records(tmp_path / "metrics.jsonl", []), tmp_path / "curves.png")


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys, megaqk.training.hooks.curves, megaqk.training.metrics; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    records = write_records(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    with pytest.raises(UserError, match=r"elsewhere/curves\.png: No such file or directory$"):
        write_curves(records, tmp_path / "elsewhere" / "curves.png")
