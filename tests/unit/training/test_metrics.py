import json
import math
import os
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaqk.errors import UserError
from megaqk.training.metrics import MetricsWriter, read_metrics


def record(step: int, loss: float = 2.0) -> dict[str, float]:
    return {"step": step, "loss": loss, "lr/upper_qk": 1e-4 * step, "multiplier/upper_qk": 0.1}


def scalars(run_dir: Path, tag: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(tag)]


def test_both_files_hold_the_same_records(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path)) as writer:
        for step in range(1, 4):
            writer.write(record(step, loss=1 / step))
        writer.write({"step": 3, "valid_loss": 0.5, "valid_perplexity": math.exp(0.5)})
    records = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [line["step"] for line in records] == [1, 2, 3, 3]
    assert records[-1] == {"step": 3, "valid_loss": 0.5, "valid_perplexity": math.exp(0.5)}
    for tag in ("loss", "lr/upper_qk", "multiplier/upper_qk", "valid_loss"):
        expected = [(line["step"], line[tag]) for line in records if tag in line]
        assert scalars(tmp_path, tag) == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]


def test_tensors_and_numpy_scalars_are_numbers_too(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path)) as writer:
        writer.write(
            {"step": 1, "loss": torch.tensor(0.5), "grad_norm": np.float32(0.25), "tokens": 10**12, "mfu": None}
        )
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert line == '{"step": 1, "loss": 0.5, "grad_norm": 0.25, "tokens": 1000000000000}'


def test_a_number_that_is_not_finite_is_valid_json(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path)) as writer:
        writer.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "loss": None, "grad_norm": None}
    assert math.isnan(scalars(tmp_path, "loss")[0][1])
    assert scalars(tmp_path, "grad_norm") == [(1, math.inf)]


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path)) as writer:
        for step in range(1, 8):
            writer.write(record(step, loss=1.0))
        writer.write({"step": 4, "valid_loss": 1.0})
    # What a kill in the middle of a write leaves.
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 8, "lo')
    with closing(MetricsWriter(tmp_path, resume_step=4)) as writer:
        for step in range(5, 11):
            writer.write(record(step, loss=2.0))
    expected = [(step, 1.0 if step <= 4 else 2.0) for step in range(1, 11)]
    records = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [(line["step"], line["loss"]) for line in records if "loss" in line] == expected
    assert [line for line in records if "valid_loss" in line] == [{"step": 4, "valid_loss": 1.0}]
    assert scalars(tmp_path, "loss") == expected


def test_a_run_that_starts_over_forgets_the_last_one(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with closing(MetricsWriter(tmp_path)) as writer:
            writer.write(record(1, loss))
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [2.0]
    assert scalars(tmp_path, "loss") == [(1, 2.0)]


def test_a_record_is_readable_at_once_and_after_flush_in_tensorboard(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path)
    writer.write(record(1))
    assert len(list(read_metrics(tmp_path / "metrics.jsonl"))) == 1
    writer.flush()
    assert scalars(tmp_path, "loss") == [(1, 2.0)]
    writer.close()
    writer.close()


def test_a_step_that_is_logged_and_evaluated_has_one_point_for_each_tag(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path)) as writer:
        for step in (1, 2):
            writer.write({"step": step, "tokens": 8 * step, "loss": 2.0})
            writer.write({"step": step, "tokens": 8 * step, "valid_loss": 3.0})
    assert scalars(tmp_path, "tokens") == [(1, 8.0), (2, 16.0)]
    assert scalars(tmp_path, "valid_loss") == [(1, 3.0), (2, 3.0)]
    assert [line["tokens"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [8, 8, 16, 16]


DAMAGE = b'\xf0\x9f\x98 half a character\x00\n"step"\n{"step": "3"}\n{"step": true}\n' + b"[" * 100_000 + b"\n\xff\n"


def test_a_damaged_line_is_named_to_a_reader(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + DAMAGE + b'{"step": 2}\n')
    with pytest.raises(
        UserError, match=r"metrics\.jsonl: line 2 is not a record, .*half a char.*resume the run"
    ) as caught:
        list(read_metrics(path))
    assert len(str(caught.value).splitlines()) == 1
    path.write_bytes(b'{"step": 1}\n\xf0\x9f')
    assert list(read_metrics(path)) == [{"step": 1}]
    with pytest.raises(UserError, match="there is no such file"):
        list(read_metrics(tmp_path / "elsewhere.jsonl"))


def test_a_damaged_line_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    damaged = b'{"step": 1, "loss": 0.10}\n' + DAMAGE + b'{"step": 2}\n{"step": 3}\n'
    for number in (1, 2):
        path.write_bytes(damaged)
        caplog.clear()
        with closing(MetricsWriter(tmp_path, resume_step=2)) as writer:
            writer.write({"step": 3, "loss": 1.0})
        # The good lines as they were, to the byte.
        assert path.read_bytes() == b'{"step": 1, "loss": 0.10}\n{"step": 2}\n{"step": 3, "loss": 1.0}\n'
        assert path.with_name(f"metrics.jsonl.damaged-{number}").read_bytes() == damaged
        assert (
            f"6 of 9 lines are not records and were left out; the file as it was is metrics.jsonl.damaged-{number}"
            in (caplog.text)
        )
    caplog.clear()
    MetricsWriter(tmp_path, resume_step=3).close()
    assert not caplog.text
    assert len(list(tmp_path.glob("*damaged*"))) == 2


@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_a_full_disk_names_the_file(tmp_path: Path, full: str) -> None:
    """Linux has a device that is always full; the writer's file is led to it."""
    writer = MetricsWriter(tmp_path)
    writer.write(record(1))
    owner = writer._records if full == "metrics.jsonl" else writer._events
    with Path("/dev/full").open("wb") as device:
        os.dup2(device.fileno(), owner._file.fileno())
        with pytest.raises(UserError, match=rf"{full}.*: No space left on device$"):
            writer.write(record(2))
        writer.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(UserError, match=r"tensorboard.*: (File exists|Not a directory)$"):
        MetricsWriter(tmp_path)


def test_writing_a_record_is_cheap(tmp_path: Path) -> None:
    """Far below a percent of even a short step; the bound is wide because other work shares the machine."""
    wide = (
        {"step": 0} | {f"lr/{group}": 0.1 for group in range(20)} | {f"multiplier/{group}": 0.1 for group in range(20)}
    )
    with closing(MetricsWriter(tmp_path)) as writer:
        writer.write(wide)
        costs = []
        for step in range(1, 101):
            began = time.perf_counter()
            writer.write(wide | {"step": step})
            costs.append(time.perf_counter() - began)
    assert sorted(costs)[50] < 2e-3
    print(f"median {sorted(costs)[50] * 1e6:.0f} us")
