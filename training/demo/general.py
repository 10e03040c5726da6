"""Prompts that belong to no demo task; knows what experts must turn down, nothing of training."""

import re
from collections.abc import Callable
from random import Random

from training.demo import (
    contacts,
    contacts_phrases,
    dates,
    dates_phrases,
    logs,
    logs_phrases,
    sentiment,
    sentiment_phrases,
    sql,
)
from training.demo import general_phrases as words
from training.demo.general_held_out import HELD_OUT
from training.demo.wording import Phrasebook, ask, expand, fill, lower_first, polite, roughen

_PLAIN = words.CHAT | words.KNOWLEDGE | words.WRITING | words.CODE
_PAYLOADS: dict[str, Callable[[Random], str]] = {
    "date": dates.payload,
    "date2": dates.payload,
    "query": sql.payload,
    "schema": sql.schema_payload,
    "log": logs.payload,
    "review": sentiment.payload,
    "contact": contacts.payload,
}
_FOREIGN = (
    (dates.payload, dates_phrases.LABELS),
    (sql.payload, ("Query", "SQL", "Input", "Statement")),
    (logs.payload, logs_phrases.LABELS),
    (sentiment.payload, sentiment_phrases.LABELS),
    (contacts.payload, contacts_phrases.LABELS),
)
_ORDER = re.compile(
    r"(Translate|Please|Put|Summari[sz]e|Sum|Give|Write|Rewrite|Rephrase|Paraphrase|Make|Turn|Change|Say|Expand|Continue|"
    r"Complete|Correct|Fix|Check|Proofread|Find|List|Classify|Decide|Rate|Ask|Explain|Comment|Extract) "
)
_OPENERS = ("", "", "", "", "", "", "Hi! ", "Hey, ", "Question: ", "Please: ", "Hello. ", "Quick question: ")
CATEGORIES = (*_PLAIN, *words.NEAR, *words.OVER_TEXT, "single words", "foreign instructions", "long messages")


def _slot(rng: Random, name: str) -> str:
    if name in _PAYLOADS:
        return _PAYLOADS[name](rng)
    if name in "nmk":
        return str(rng.choice((rng.randrange(2, 13), rng.randrange(2, 100), rng.randrange(100, 1000))))
    if name == "code" and rng.random() < 0.3:
        return "\n\n".join(rng.sample(words.SLOTS["code"], 2))
    return rng.choice(words.SLOTS[name])


def _filled(rng: Random, template: str) -> str:
    text = expand(rng, template)
    slots = {name: _slot(rng, name) for name in re.findall(r"(?<!\{)\{(\w+)\}", text)}
    return fill(text, slots).replace("{{", "{").replace("}}", "}")


def _from_templates(rng: Random, templates: tuple[str, ...]) -> str:
    text = _filled(rng, rng.choice(templates))
    plain = "\n" not in text and ":" not in text
    if plain and re.match(r"(Write|Tell|Give|Explain|Make|List|Name|Suggest|Describe|Compose|Plan) ", text):
        text = polite(rng, text.rstrip(".")) if rng.random() < 0.4 else text
    elif plain:
        opener = rng.choice(_OPENERS)
        text = opener + (lower_first(text) if opener.endswith(", ") else text)
    return roughen(rng, text) if plain else text


def _over_text(rng: Random, instructions: tuple[str, ...], text: str, labels: tuple[str, ...]) -> str:
    """A foreign instruction over a text, in the very frames the tasks use."""
    wording = _filled(rng, rng.choice(instructions))
    if _ORDER.match(wording):
        return ask(rng, Phrasebook(orders=(wording,), remarks=(), labels=labels), text)
    return ask(rng, Phrasebook(orders=(), remarks=(wording,), labels=labels), text)


def _single(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.6:
        return " ".join(rng.sample(words.SINGLE, rng.choice((1, 1, 2))))
    letters = "abcdefghijklmnopqrstuvwxyz"
    return " ".join("".join(rng.choices(letters, k=rng.randrange(2, 9))) for _ in range(rng.randrange(1, 5)))


def _long(rng: Random) -> str:
    """Several thoughts in one message."""
    pools = list((words.CHAT | words.KNOWLEDGE | words.WRITING).values())
    parts = [_filled(rng, rng.choice(rng.choice(pools))) for _ in range(rng.choice((2, 3, 4)))]
    if rng.random() < 0.5:
        parts.insert(rng.randrange(len(parts)), rng.choice(words.SLOTS["text"]))
    joiner = rng.choice((" ", " ", "\n", " Also, ", "\n\n"))
    return joiner.join(part if part.endswith((".", "?", "!")) else part + "." for part in parts)


def draw(rng: Random, category: str) -> str:
    """One training prompt of a category."""
    if category == "single words":
        return _single(rng)
    if category == "long messages":
        return _long(rng)
    if category in words.OVER_TEXT:
        text = " ".join(rng.sample(words.SLOTS["text"], rng.choice((1, 1, 2, 3))))
        return _over_text(rng, words.OVER_TEXT[category], text, ("Text", "Input", "Sentence"))
    if category == "foreign instructions":
        foreign, labels = rng.choice(_FOREIGN)
        return _over_text(rng, rng.choice(list(words.OVER_TEXT.values())), foreign(rng), labels)
    return _from_templates(rng, (_PLAIN | words.NEAR)[category])


def generate(rng: Random, *, held_out: bool) -> tuple[str, str]:
    """(category, prompt)."""
    if held_out:
        category = rng.choice(list(HELD_OUT))
        return category, rng.choice(HELD_OUT[category])
    weights = [_weight(category) for category in CATEGORIES]
    category = rng.choices(CATEGORIES, weights)[0]
    return category, draw(rng, category)


def _weight(category: str) -> int:
    if category in words.NEAR:
        return 4
    return 5 if category in ("foreign instructions", "long messages") else 2 if category in _HEAVY else 1


_HEAVY = frozenset(
    (
        "chitchat",
        "arithmetic",
        "word problems",
        "facts",
        "poems",
        "code writing",
        "code review",
        "translation",
        "summarising",
    )
)
