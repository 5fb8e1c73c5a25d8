"""A run's folder belongs to one job, also where the file system's locks say nothing of other machines."""

import json
from pathlib import Path

import pytest

from megaqk.errors import UserError
from megaqk.runtime.channel import Failure
from megaqk.training.run_folder import RunFolder


def test_a_job_that_lost_the_folder_leaves_it_to_the_other(tmp_path: Path) -> None:
    mine, theirs = RunFolder(tmp_path), RunFolder(tmp_path)
    mine.claim()
    mine.write_result({"state": "running", "step": 1})
    # A lock on another machine that knows nothing of mine: the same file, and not the same lock.
    (tmp_path / ".lock").unlink()
    theirs.claim()
    theirs.write_result({"state": "running", "step": 2})
    with pytest.raises(UserError, match=rf"run.dir = {tmp_path}: another job \(.*, process \d+, \d+\) has begun"):
        mine.write_result({"state": "running", "step": 3})
    mine.note_failure(Failure(rank=0, reporter=0, status=2, state="refused", line="refused"))
    assert json.loads((tmp_path / "result.json").read_text()) == {"state": "running", "step": 2}


def test_a_folder_that_rank_0_does_not_see_is_refused(tmp_path: Path) -> None:
    owner = RunFolder(tmp_path / "one").claim()
    RunFolder(tmp_path / "one").check_shared(owner)
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match=r"run.dir = .*two: is not the folder .* must be one that all nodes share"):
        RunFolder(tmp_path / "two").check_shared(owner)
    RunFolder(tmp_path / "two").claim()
    with pytest.raises(UserError, match="all nodes share"):
        RunFolder(tmp_path / "two").check_shared(owner)
