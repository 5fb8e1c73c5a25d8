"""The tasks that come with the package, known without lm-evaluation-harness."""

from pathlib import Path

FOLDER = Path(__file__).parent / "tasks"
TAG = "megaqk"
"""Names all of them."""


def shipped_names() -> list[str]:
    """Their names, and the tag."""
    return [TAG, *sorted(path.stem for path in FOLDER.glob("*.yaml"))]
