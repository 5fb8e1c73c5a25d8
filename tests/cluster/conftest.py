"""A Slurm cluster of two nodes for the session, and a tree to submit from."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.jobs import Site, cluster, copy_scripts

# The same tiny text and run as those of the command line.
from tests.distributed.conftest import data_section, write_config

__all__ = ["data_section", "write_config"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session", autouse=True)
def _cluster() -> Iterator[None]:
    cluster("up")
    exported = re.findall(r"export (\w+)=(.*)", cluster("env"))
    os.environ.update(exported)
    yield
    cluster("down")
    for name, _ in exported:
        del os.environ[name]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Where a test submits; its jobs end with it, and so must every process of theirs."""
    copy_scripts(tmp_path)
    yield Site(tmp_path)
    subprocess.run(["scancel", "--user=root"], check=True, timeout=30)
