"""Common words out of the other phrase files, for rows whose content is to be copied and not understood.

Knows no task. Whoever copies words it has never copied before must know them with and without a space in front, in
small letters and capitals; a few hundred words of one kind do not teach that.
"""

import re
from collections.abc import Iterable

from training.demo import general_phrases, sentiment_reviews, sentiment_told


def _texts() -> Iterable[str]:
    groups = (general_phrases.CHAT, general_phrases.KNOWLEDGE, general_phrases.WRITING, general_phrases.CODE)
    for templates in (*(group[key] for group in groups for key in group), *general_phrases.SLOTS.values()):
        yield from templates
    for domain in sentiment_reviews.DOMAINS:
        yield from (*domain.nouns, *domain.aspects, *domain.good, *domain.bad, *domain.facts)
    for told in sentiment_told.TOLD.values():
        yield from told


def _words(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({word for text in texts for word in re.findall(r"(?<![\w{<])[a-z]{3,10}(?![\w}>])", text)}))


WORDS = _words(_texts())
