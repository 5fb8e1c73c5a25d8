import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megaqk.config.data import DataConfig
from megaqk.data.splits import document_bounds
from megaqk.evaluation.shipped_tasks import FOLDER, shipped_names
from tools import evaluation_tasks

PAIRS = ("agreement", "agreement_attractor", "reflexive", "determiner_noun")
CHOICES = ("last_word", "induction", "copying")


def items(name: str) -> Iterator[dict[str, Any]]:
    for line in (FOLDER / f"{name}.jsonl").read_text().splitlines():
        yield json.loads(line)


def test_the_data_is_what_the_tool_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_tasks, "TASKS", tmp_path)
    evaluation_tasks.main()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FOLDER.glob("*.jsonl")}
    assert sorted(written) == sorted(f"{name}.jsonl" for name in (*PAIRS, *CHOICES))


def test_a_choice_that_ignores_the_rule_is_at_chance_exactly() -> None:
    for seed in range(5):
        for name in (*PAIRS, *CHOICES):
            rank: dict[str, float] = {}
            draw, right, first = random.Random(seed), [], []
            for one in items(name):
                # What tells the choices of a pair apart is a word; the others are words.
                words = [set(choice.strip(".").split()) for choice in one["choices"]]
                own = [min(mine - set.union(*(words[:at] + words[at + 1 :]))) for at, mine in enumerate(words)]
                ranks = [rank.setdefault(word, draw.random()) for word in own]
                right.append(ranks.index(max(ranks)) == one["answer"])
                first.append(one["answer"] == 0)
            chance = 0.5 if name in PAIRS else 0.25
            assert sum(right) / len(right) == sum(first) / len(first) == chance, name


def test_no_item_is_there_twice() -> None:
    for name in (*PAIRS, *CHOICES):
        found = [(one.get("text", ""), one["choices"][one["answer"]], *sorted(one["choices"])) for one in items(name)]
        assert len(set(found)) == len(found) == 400


def test_who_agrees_with_the_nearest_noun_is_always_wrong() -> None:
    for one in items("agreement_attractor"):
        subject, *_, nearest, verb = words_of(one)
        assert is_plural(subject) == (verb in ("are", "were")) != is_plural(nearest)


def words_of(one: dict[str, Any]) -> list[str]:
    """Subject, what stands between, the noun before the verb, the verb."""
    words = one["choices"][one["answer"]].split()[1:]
    verb = next(at for at, word in enumerate(words) if word in ("is", "are", "was", "were"))
    return words[: verb + 1]


def is_plural(noun: str) -> bool:
    return noun.endswith("s") or noun in ("men", "women", "gentlemen", "children")


def test_what_was_said_early_is_the_answer() -> None:
    for one in items("induction"):
        *words, asked = one["text"].split()
        assert words[words.index(asked) + 1] == one["choices"][one["answer"]]
    for one in items("copying"):
        said = [name in one["text"].replace(".", "").split() for name in one["choices"]]
        assert said.index(True) == one["answer"]
        assert sum(said) == 1


def test_passages_are_of_documents_that_no_run_trains_on() -> None:
    texts = evaluation_tasks.held_out()
    assert all(sum(one["text"] in text for text in texts) == 1 for one in items("last_word"))
    end_of_training = document_bounds(286, DataConfig(text="builtin").split)[1]
    assert end_of_training <= 286 - evaluation_tasks.HELD_OUT


def test_every_task_has_a_file() -> None:
    assert shipped_names() == ["megaqk", *sorted(f"megaqk_{name}" for name in (*PAIRS, *CHOICES, "last_word_choice"))]
