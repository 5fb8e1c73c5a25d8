"""What only the machine of a run can tell: whether it has what the configuration asks for."""

import torch

from megaqk.config.root import Config
from megaqk.errors import UserError
from megaqk.optim.optimizers import choose_implementation
from megaqk.runtime.device import missing_here


def missing(config: Config, device: torch.device) -> list[str]:
    """What a machine whose device is this lacks, a line for each."""
    lines = [] if (line := missing_here(config.training.precision)) is None else [line]
    try:
        choose_implementation(config.optimizer, device)
    except UserError as error:
        lines.append(str(error))
    return lines


def check_device(config: Config, device: torch.device) -> None:
    """Refuse a run that this machine cannot do.

    Raises:
        UserError: For the first thing that is missing.
    """
    for line in missing(config, device):
        raise UserError(line)
