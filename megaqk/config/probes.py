"""What a run measures of itself beside loss and speed."""

from pydantic import Field, model_validator

from megaqk.config.base import Section, refusal


class ProbesConfig(Section):
    """How often the attention, the residual stream and the weights are looked at; see docs/probes.md."""

    every: int = Field(
        0, ge=0, description="Steps between probes, which are taken before the first step and at the end too; 0: none."
    )
    micro_batches: int = Field(
        1, ge=1, description="First micro-batches of the validation split (else of training) that a probe looks at."
    )
    max_logit_alert: float | None = Field(
        None, gt=0, description="A probe that finds an attention logit above this warns; null: none does."
    )

    @model_validator(mode="after")
    def _check(self) -> "ProbesConfig":
        if self.max_logit_alert is not None and not self.every:
            raise refusal("max_logit_alert", self.max_logit_alert, "must be null with probes.every = 0")
        return self
