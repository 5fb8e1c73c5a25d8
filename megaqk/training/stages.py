"""The decoder as DeepSpeed's pipeline module: one stage of it on each process."""

from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.pipe import LayerSpec as DeepSpeedLayerSpec
from deepspeed.pipe import PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import nn

from megaqk.model.context import ModelContext
from megaqk.model.decoder import LayerSpec, decoder_loss, layer_specs, stage_bounds
from megaqk.parallel.topology import ParallelDims


def deepspeed_topology(dims: ParallelDims) -> PipeModelDataParallelTopology:
    """Our axes as DeepSpeed's topology; both number ranks alike."""
    return PipeModelDataParallelTopology(num_pp=dims.pipeline, num_mp=dims.tensor, num_dp=dims.data)


def _to_deepspeed(spec: LayerSpec) -> DeepSpeedLayerSpec:
    if spec.tied:
        return TiedLayerSpec(spec.name, spec.module, *spec.arguments, forward_fn=spec.forward)
    return DeepSpeedLayerSpec(spec.module, *spec.arguments)


class StagedDecoder(PipelineModule):  # type: ignore[misc]
    """One stage of the decoder.

    Args:
        context: What the layers are built from.
        dims: The parallel axes.
        layers_per_stage: (first, end) block of each stage.
    """

    def __init__(self, context: ModelContext, dims: ParallelDims, layers_per_stage: Sequence[tuple[int, int]]) -> None:
        specs = layer_specs(context)
        bounds = stage_bounds(layers_per_stage)
        # Read by _partition_layers while the base class is being constructed; nn.Module is not ready for more.
        self.__dict__["_bounds"] = bounds
        super().__init__(
            [_to_deepspeed(spec) for spec in specs],
            topology=deepspeed_topology(dims),
            loss_fn=decoder_loss(context),
        )
        self.specs = specs

    def _partition_layers(self, method: str = "uniform") -> None:
        del method
        self.parts = self.__dict__["_bounds"]
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])

    @torch.no_grad()
    def _synchronize_tied_weights(self) -> None:
        """Without no_grad, torch takes the broadcast into a parameter for an operation to differentiate."""
        super()._synchronize_tied_weights()

    def global_parameters(self) -> dict[str, nn.Parameter]:
        """This stage's parameters by global name, in the order of the layers; a tied module once."""
        named: dict[str, nn.Parameter] = {}
        for index in range(self._local_start, self._local_stop):
            spec = self.specs[index]
            module: Any = self.tied_modules[spec.name] if spec.tied else getattr(self, str(index))
            named.update({f"{spec.name}.{key}": value for key, value in module.named_parameters()})
        return named
