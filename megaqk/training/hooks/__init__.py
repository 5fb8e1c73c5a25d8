"""Everything that looks at a step, in the order in which it does."""

from megaqk.training.hooks.baseline import UnigramBaseline
from megaqk.training.hooks.curves import Curves
from megaqk.training.hooks.display import Display
from megaqk.training.hooks.evaluation import Evaluation
from megaqk.training.hooks.fault_watch import FaultWatch
from megaqk.training.hooks.head_scaling import QkClip
from megaqk.training.hooks.logging import StepRecords
from megaqk.training.hooks.probing import Probing
from megaqk.training.hooks.recording import Recording
from megaqk.training.hooks.result import ResultFile
from megaqk.training.hooks.saving import Saving
from megaqk.training.trainer import Hook


def default_hooks() -> list[Hook]:
    """The hooks of every run: what changes weights first; records are written before shown; result.json comes last."""
    return [
        QkClip(),
        Recording(),
        Display(),
        StepRecords(),
        Evaluation(),
        Probing(),
        Saving(),
        FaultWatch(),
        Curves(),
        UnigramBaseline(),
        ResultFile(),
    ]
