"""Writes the data of the tasks that megaqk ships: `python tools/evaluation_tasks.py`.

Every file is made so that what can be known without the rule that it tests is worth nothing: each answer is the right
one as often as it is a wrong one, in the same company, so that a model with fixed preferences among words is at chance,
exactly. The passages come from the documents of the shipped text that a run does not train on.
"""

import json
import lzma
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1] / "megaqk"
TEXT = PACKAGE / "corpus" / "assets" / "english.jsonl.xz"
TASKS = PACKAGE / "evaluation" / "tasks"
NUM_ITEMS = 400
NUM_CHOICES = 4
HELD_OUT = 14
"""Documents at the end of the shipped text: its last twentieth, which `data.split` keeps from training by default."""

WORDS = (
    "apple basket bell bird blanket boat book bottle bread bridge brother butter candle captain castle chair "
    "church cloud coat corner cottage cousin daughter desk doctor dog door dress fence field finger fire fish "
    "floor flower forest garden gate glass gold grass hair hammer harbour hat hill horse house iron island jacket "
    "kettle king kitchen knife lady lamp leaf letter light lion lord master meadow mirror money moon morning "
    "mother mountain mouse music needle night paper party pencil picture pipe plate pocket queen rain river road "
    "roof room rope school servant shadow ship shoe silver sister sleep smoke snow soldier spoon star station "
    "stone storm street summer sun table teacher tree uncle valley village voice wagon wall water whale window "
    "wine winter wood"
)
NAMES = "Alice Anne Charles Elizabeth George Harry Henry James Jane John Mary Peter Robert Thomas Tom William"

# The nouns of each are forms of one word: singular, plural.
MEN = "man:men king:kings boy:boys gentleman:gentlemen brother:brothers father:fathers uncle:uncles son:sons"
WOMEN = "woman:women queen:queens girl:girls lady:ladies sister:sisters mother:mothers aunt:aunts daughter:daughters"
OTHERS = "captain:captains sailor:sailors doctor:doctors servant:servants child:children friend:friends"
THINGS = (
    "house:houses ship:ships tree:trees door:doors river:rivers window:windows table:tables church:churches "
    "hill:hills garden:gardens boat:boats horse:horses wall:walls road:roads"
)
OBJECTS = (
    "book:books letter:letters picture:pictures house:houses horse:horses boat:boats ship:ships chair:chairs "
    "coat:coats hat:hats story:stories paper:papers bell:bells bottle:bottles garden:gardens dress:dresses "
    "knife:knives tree:trees window:windows room:rooms"
)
VERBS = [("is", "are"), ("was", "were")]
STATES = "very happy|very tired|quite old|very quiet|quite alone|very poor|quite young|very angry|not there|not ready"
PLACES = "near|behind|beyond|before|beside|in front of"
DEEDS = "blamed hurt found asked saw killed amused dressed defended excused hid admired forgot ruined saved told"
REFLEXIVES = ["himself", "herself", "themselves"]
SEEN = "He saw|She saw|They found|We bought|I remember|He wanted|She loved|They sold|We know|I have seen"
TIMES = "in the morning|last year|on the way|after dinner|in town|for a long time|at night|once more"

ROLES = "captain doctor baker lawyer teacher painter sailor soldier stranger traveller"
SAYINGS = [
    ("The name of the {role} was {name}.", "So at last they knew that the name of the {role} was"),
    ("The {role} was called {name}.", "So everybody knew that the {role} was called"),
    ("There was a {role} who was known as {name}.", "It was the {role}, of course, who was known as"),
    ("Once there lived a {role} named {name}.", "This is all I know of the {role} named"),
]


def pairs(words: str) -> list[tuple[str, str]]:
    return [(one, many) for one, _, many in (word.partition(":") for word in words.split())]


def held_out() -> list[str]:
    with lzma.open(TEXT, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][-HELD_OUT:]


def sentences(text: str) -> Iterator[list[str]]:
    """The sentences of each paragraph."""
    for paragraph in text.split("\n\n"):
        yield re.split(r"(?<=[.!?])(?<!Mr\.)(?<!Mrs\.)(?<!Dr\.)(?<!St\.) (?=[A-Z])", paragraph)


def item(good: str, bad: str, number: int) -> dict[str, Any]:
    """A minimal pair; the good one stands first in every other item, for what ties."""
    return {"choices": [bad, good] if number % 2 else [good, bad], "answer": number % 2}


def grouped(group: list[str], contexts: list[str], **more: Any) -> list[dict[str, Any]]:
    """Items that share their choices, each of which is the answer once: that of context i is choice i."""
    return [{"text": text, "choices": group, "answer": answer, **more} for answer, text in enumerate(contexts)]


def last_word(rng: random.Random) -> list[dict[str, Any]]:
    """Passages of whole sentences without their last word, and four words to choose from."""
    found = []
    for text in held_out():
        for paragraph in sentences(text):
            passage = ""
            for sentence in paragraph:
                passage = f"{passage} {sentence}".strip()
                match = re.fullmatch(r"(.*[a-z,;]) ([a-z]{3,})[.!?]", passage)
                if len(passage) > 330 or not re.fullmatch(r"[A-Za-z ,.;:?!'-]*", passage):
                    passage = ""
                elif len(passage) >= 150 and match:
                    found.append((match[1], match[2]))
                    passage = ""
    rng.shuffle(found)
    items: list[dict[str, Any]] = []
    # A word ends each passage of a group, and no two passages of it have the same.
    while len(items) < NUM_ITEMS:
        group: list[tuple[str, str]] = []
        for one in found:
            if len(group) < NUM_CHOICES and one[1] not in [word for _, word in group]:
                group.append(one)
        found = [one for one in found if one not in group]
        items += grouped([word for _, word in group], [text for text, _ in group])
    return items


def agreement(rng: random.Random) -> list[dict[str, Any]]:
    """A subject and its verb, one after the other."""
    combinations = [
        (noun, verb, state)
        for noun in pairs(f"{MEN} {WOMEN} {OTHERS}")
        for verb in VERBS
        for state in STATES.split("|")
    ]
    items: list[dict[str, Any]] = []
    for noun, verb, state in rng.sample(combinations, NUM_ITEMS // 2):
        for number in (0, 1):
            good, bad = (f"The {noun[number]} {verb[which]} {state}." for which in (number, 1 - number))
            items.append(item(good, bad, len(items) // 2 + number))
    return items


def agreement_attractor(rng: random.Random) -> list[dict[str, Any]]:
    """A noun of the other number stands between subject and verb: who agrees with the nearest noun is always wrong."""
    combinations = [
        (noun, place, other, verb, state)
        for noun in pairs(f"{MEN} {WOMEN} {OTHERS}")
        for place in PLACES.split("|")
        for other in pairs(THINGS)
        for verb in VERBS
        for state in STATES.split("|")
    ]
    items: list[dict[str, Any]] = []
    for noun, place, other, verb, state in rng.sample(combinations, NUM_ITEMS // 2):
        for number in (0, 1):
            good, bad = (
                f"The {noun[number]} {place} the {other[1 - number]} {verb[which]} {state}."
                for which in (number, 1 - number)
            )
            items.append(item(good, bad, len(items) // 2 + number))
    return items


def reflexive(rng: random.Random) -> list[dict[str, Any]]:
    """Himself, herself or themselves; each is right as often as it is wrong."""
    subjects = [[one for one, _ in pairs(MEN)], [one for one, _ in pairs(WOMEN)]]
    subjects.append([many for _, many in pairs(f"{MEN} {WOMEN}")])
    items: list[dict[str, Any]] = []
    seen = set[str]()
    while len(items) < NUM_ITEMS:
        first, second = rng.sample(range(3), 2)
        deed = rng.choice(DEEDS.split())
        starts = [f"The {rng.choice(subjects[which])} {deed}" for which in (first, second)]
        pair = [(starts[0], first, second), (starts[1], second, first)]
        if seen.isdisjoint(keys := {f"{start} {REFLEXIVES[wrong]}" for start, _, wrong in pair}):
            seen |= keys
            for number, (start, right, wrong) in enumerate(pair):
                good, bad = f"{start} {REFLEXIVES[right]}.", f"{start} {REFLEXIVES[wrong]}."
                items.append(item(good, bad, len(items) // 2 + number))
    return items


def determiner_noun(rng: random.Random) -> list[dict[str, Any]]:
    """This or that with one, these or those with several."""
    combinations = [
        (start, determiner, noun, time)
        for start in SEEN.split("|")
        for determiner in (("this", "these"), ("that", "those"))
        for noun in pairs(OBJECTS)
        for time in TIMES.split("|")
    ]
    items: list[dict[str, Any]] = []
    for start, determiner, noun, time in rng.sample(combinations, NUM_ITEMS // 2):
        for number in (0, 1):
            good, bad = (f"{start} {determiner[which]} {noun[number]} {time}." for which in (number, 1 - number))
            items.append(item(good, bad, len(items) // 2 + number))
    return items


def induction(rng: random.Random) -> list[dict[str, Any]]:
    """Random words, one of them again at the end: what came after it comes again."""
    items: list[dict[str, Any]] = []
    while len(items) < NUM_ITEMS:
        words = rng.sample(WORDS.split(), 20)
        # Far enough from the end that what is near tells nothing, and apart from each other.
        at = sorted(rng.sample(range(0, 16, 2), NUM_CHOICES))
        rng.shuffle(at)
        items += grouped([words[where + 1] for where in at], [" ".join([*words, words[where]]) for where in at])
    return items


def copying(rng: random.Random) -> list[dict[str, Any]]:
    """A name that is given early and asked for after some sentences on other things."""
    fillers = [
        sentence
        for text in held_out()
        for paragraph in sentences(text)
        for sentence in paragraph
        if re.fullmatch(r"[A-Z][a-z ,]{30,80}\.", sentence)
    ]
    items: list[dict[str, Any]] = []
    while len(items) < NUM_ITEMS:
        names, role = rng.sample(NAMES.split(), NUM_CHOICES), rng.choice(ROLES.split())
        given, asked = rng.choice(SAYINGS)
        between = " ".join(rng.sample(fillers, rng.randint(2, 4)))
        texts = [f"{given.format(role=role, name=name)} {between} {asked.format(role=role)}" for name in names]
        items += grouped(names, texts, distance=len(between.split()))
    return items


def main() -> None:
    for make in (last_word, agreement, agreement_attractor, reflexive, determiner_noun, induction, copying):
        lines = [json.dumps(one) + "\n" for one in make(random.Random(make.__name__))]
        (TASKS / f"{make.__name__}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
