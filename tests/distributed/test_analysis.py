"""`megaqk probe` on a run of four ranks: against its own probes, a model edited by hand, what a user can cause."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megaqk import cli
from megaqk.analysis.material import open_material
from megaqk.analysis.passes import mean_loss
from megaqk.checkpoint.reader import Checkpoint
from tests.distributed import commands
from tests.harness import run_distributed

# A new interpreter, as a user has it: one process that never loads DeepSpeed.
PROBE = """
import sys
from megaqk.cli import main
status = main(sys.argv[1:])
assert "deepspeed" not in sys.modules
sys.exit(status)
"""
LAYERS, HEADS = 4, 4


@pytest.fixture(scope="module")
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, data_section: dict[str, Any], write_config: Callable[..., Path]
) -> Path:
    """A run of 6 steps on tensor 2 x pipeline 2, three checkpoints, and a text of its own."""
    folder = tmp_path_factory.mktemp("analysis")
    text = shutil.copy(data_section["text"], folder)
    config = write_config(
        folder,
        model={"init_std": 0.3},
        parallel={"tensor": 2, "pipeline": 2},
        # Labels that do not count, and positions that begin anew.
        data={**data_section, "text": text, "cache_dir": str(folder / "cache"), "separate_documents": True},
        training={"steps": 6, "global_batch_size": 8, "micro_batch_size": 2, "sequence_length": 48, "seed": 5},
        checkpoint={"every": 2, "keep": 9},
        probes={"every": 2, "micro_batches": 3},
        evaluation={"batches": 0},
    )
    assert run_distributed(commands.run_command, 4, ["pretrain", str(config)], init=False, timeout=120) == [0] * 4
    return folder / "run"


@pytest.fixture(scope="module")
def analysis(run_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", PROBE, "probe", str(run_dir), "--initial", "--heads", "all"]
    done = subprocess.run(command, check=True, timeout=120, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines()[-1] == f"written to {run_dir / 'analysis.json'}"
    assert "Upper layers 2-3, lower layers 0-1" in done.stdout
    return dict(json.loads((run_dir / "analysis.json").read_text()))


def test_it_is_what_the_run_has_measured_itself(run_dir: Path, analysis: dict[str, Any]) -> None:
    probes = [json.loads(line) for line in (run_dir / "probes.jsonl").read_text().splitlines()]
    assert analysis["steps"] == [probe["step"] for probe in probes] == [0, 2, 4, 6]
    assert analysis["tokens"] == [probe["tokens"] for probe in probes]
    common = probes[0].keys() & analysis.keys() - {"tokens"}
    assert len(common) == 8
    for name in common:
        mine, theirs = (torch.tensor(values) for values in (analysis[name], [probe[name] for probe in probes]))
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=1e-5, msg=name)


def test_everything_is_there(analysis: dict[str, Any]) -> None:
    steps = len(analysis["steps"])
    assert (analysis["num_layers"], analysis["num_heads"], analysis["probe_tokens"]) == (LAYERS, HEADS, 3 * 2 * 48)
    for name in ("stability_cka", "stability_cosine", "reliance_layer"):
        assert torch.tensor(analysis[name]).shape == (steps, LAYERS)
    assert torch.tensor(analysis["reliance_head"]).shape == (steps, LAYERS, HEADS)
    assert analysis["stability_cka"][-1] == pytest.approx([1] * LAYERS)
    assert all(0 < value < 0.9999 for value in analysis["stability_cka"][0])
    assert 0 <= analysis["timing_index"]["lower_stable_step"] < 6
    for one, (first, end) in zip(analysis["pathwise"], ((0, 2), (2, 4), (4, 6)), strict=True):
        assert (one["from"], one["to"]) == (first, end)
        assert 0 < one["closure"] < 1e-10
        for name in ("total", "weights", "features", "interaction"):
            mean_square = torch.tensor(one["by_head"][name]).square().mean(1)
            torch.testing.assert_close(torch.tensor(one[name]), mean_square.sqrt())
        for share in (one["share"], one["by_head"]["share"]):
            total = sum(torch.tensor(values) for values in share.values())
            torch.testing.assert_close(total, torch.ones_like(total))
        assert one["residual_energy"] == pytest.approx(
            [sum(pair) / 2 for pair in zip(*analysis["residual_energy"][first // 2 : end // 2 + 1], strict=True)]
        )
        # The rule holds the upper layers at a tenth for four steps.
        for factors in one["step_size_factor"].values():
            assert factors[3] / factors[0] == pytest.approx(0.1 if end <= 4 else factors[2] / factors[0])


def test_reliance_is_the_loss_of_a_model_edited_by_hand(run_dir: Path, analysis: dict[str, Any]) -> None:
    material = open_material(run_dir, None, initial=False)
    weights = material.weights(material.snapshots[-1])

    def loss() -> float:
        decoder = material.decoder(weights, torch.float32)
        return mean_loss(decoder, material.inputs, material.labels, samples=6)

    whole = loss()
    assert analysis["loss"][-1] == pytest.approx(whole, rel=1e-6)
    width = len(weights["layers.2.attention.qkv.query_weight"]) // HEADS
    for name in ("weight", "bias"):
        weights[f"layers.2.attention.qkv.query_{name}"][width : 2 * width] = 0
    assert analysis["reliance_head"][-1][2][1] == pytest.approx(loss() - whole, abs=2e-6)
    for name in ("weight", "bias"):
        weights[f"layers.2.attention.qkv.query_{name}"][:] = 0
    assert abs(rise := loss() - whole) > 1e-4
    assert analysis["reliance_layer"][-1][2] == pytest.approx(rise, abs=2e-6)


def probe(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = cli.main(["probe", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_one_checkpoint_is_enough_for_the_rest(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "run"))
    shutil.rmtree(copy / "checkpoints" / "step-2")
    (copy / "checkpoints" / "step-4" / "manifest.json").write_text("{")
    status, out, err = probe(capsys, copy, "--micro-batches", "1", "--heads", "none")
    assert status == 0
    assert err.startswith("passed over ")
    assert "step-4" in err
    assert "One checkpoint: the pathwise decomposition needs two" in out
    written = json.loads((copy / "analysis.json").read_text())
    assert (written["steps"], written["pathwise"], written["reliance_head"], written["probe_tokens"]) == (
        [6],
        [],
        [],
        96,
    )
    assert written["timing_index"]["steps"] is None


def test_what_a_user_can_cause_is_one_line(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    damaged = Path(shutil.copytree(run_dir, tmp_path / "damaged"))
    (damaged / "analysis.json").unlink(missing_ok=True)
    name, piece = next(
        iter(Checkpoint(folder := damaged / "checkpoints" / "step-4").index.pieces["weight/embedding.weight"])
    )
    file = folder / name
    content = bytearray(file.read_bytes())
    content[piece.offset] ^= 1
    file.write_bytes(content)
    cases = [
        ([tmp_path / "empty"], "has no checkpoints: must be the run.dir of a run"),
        ([damaged, "--heads", "none"], f"{file}: damaged"),
        ([run_dir, "--micro-batches", "0"], "--micro-batches = 0: must be at least 1"),
        ([run_dir, "--micro-batches", "9999"], "--micro-batches = 9999: must be at most "),
        ([run_dir, "--upper", "4"], "--upper = 4: must be in"),
        ([run_dir, "--stability-threshold", "2"], "--stability-threshold = 2: must be in"),
    ]
    for arguments, line in cases:
        status, _, err = probe(capsys, *arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert line in err
    assert not (damaged / "analysis.json").exists()
    text = run_dir.parent / "text.jsonl"
    text.write_text(text.read_text() + '{"text": "one more"}\n')
    status, _, err = probe(capsys, run_dir)
    assert (status, err.count("\n")) == (2, 1)
    assert "holds other tokens or documents" in err or "data.tokenizer" in err
    text.unlink()
    status, _, err = probe(capsys, run_dir)
    assert (status, err.count("\n")) == (2, 1)
    assert "data.text" in err
