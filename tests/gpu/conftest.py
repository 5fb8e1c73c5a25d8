"""Every test here is for the device that `tests/devices.py` names; without it the session ends with one line."""

from pathlib import Path

import pytest
import torch

from tests import devices
from tests.distributed.conftest import data_section, write_config

__all__ = ["data_section", "write_config"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            # Ranks have limits of their own.
            item.add_marker(pytest.mark.timeout(600 * devices.PATIENCE))


@pytest.fixture(scope="session", autouse=True)
def device_is_there(pytestconfig: pytest.Config) -> None:
    problem = devices.missing()
    if problem:
        pytest.exit(problem, returncode=2)
    name = torch.cuda.get_device_name() if devices.ON_CUDA else devices.NAME
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    assert reporter is not None
    reporter.write_line(f"on {name}, torch {torch.__version__}, CUDA {torch.version.cuda}")


@pytest.fixture(scope="session")
def device(device_is_there: None) -> torch.device:
    """The device, started in this process: for tests of single operators."""
    return devices.start()
