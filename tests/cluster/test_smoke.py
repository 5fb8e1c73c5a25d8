"""slurm/smoke.sbatch, as small as it can be, on nodes without GPUs."""

import pytest

from tests.cluster.jobs import Site

LIMIT = 240


@pytest.mark.timeout(LIMIT + 60)
def test_two_nodes_train_save_and_resume(site: Site) -> None:
    variables = {"RANKS_PER_NODE": "2", "STEPS": "3", "FOLDER": "runs"}
    model = ("model.num_layers=2", "model.hidden_size=32", "optimizer.lr=0.01", "optimizer.weight_decay=0")
    small = (*model, "training.global_batch_size=4", "training.sequence_length=32", "training.precision=fp32")
    job = site.submit("--gpus-per-node=0", "slurm/smoke.sbatch", *small, env=variables)
    assert job.ended(LIMIT) == "COMPLETED", job.log
    assert "smoke: all well on 2 nodes of 2 ranks" in job.log
    assert job.log.count("resumed after step 3") == 2
