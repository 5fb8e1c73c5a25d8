"""The base of every configuration section, and the form of a refusal."""

from pydantic import BaseModel, ConfigDict

from megaqk.config.yaml_text import show


class Section(BaseModel):
    """A frozen, strictly typed configuration section in which an unknown key is an error.

    Strict means that a value is never converted to fit: `"4"` is not an integer. NaN and infinity are no numbers here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def refusal(key: str, value: object, allowed: str) -> ValueError:
    """The error that a validator raises: which key, its value, what is allowed.

    Args:
        key: Dotted key, relative to the section whose validator raises; `loading` puts the section in front.
        value: The refused value.
        allowed: What would have been accepted, for example `must be even`.
    """
    return ValueError(f"{key} = {show(value)}: {allowed}")
