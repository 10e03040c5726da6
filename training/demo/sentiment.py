"""Composes reviews whose sentiment is beyond doubt, with their label; knows nothing of training."""

from random import Random

from training.demo.sentiment_phrases import HELD_OUT, TRAIN
from training.demo.sentiment_reviews import (
    DOMAINS,
    HELD_OUT_DOMAIN,
    HELD_OUT_REVIEWS,
    NEGATIVE_VERDICTS,
    NEUTRAL_VERDICTS,
    POSITIVE_VERDICTS,
    Domain,
)
from training.demo.sentiment_told import TOLD
from training.demo.task import DemoTask
from training.demo.wording import ask, expand, lower_first, upper_first

LABELS = ("positive", "negative", "neutral")
TOLD_SHARE = 0.5
_VERDICTS = {"positive": POSITIVE_VERDICTS, "negative": NEGATIVE_VERDICTS, "neutral": NEUTRAL_VERDICTS}
_OPPOSITE = {"positive": "negative", "negative": "positive"}
_STRONGLY = ("", "", "", "very ", "really ", "so ", "absolutely ", "truly ", "quite simply ")
_TURNS = (
    "[Still|All the same|Even so|Nevertheless|But overall|But all in all|However, overall]",
    "[In the end|All things considered|At the end of the day|Overall]",
)
_RATINGS = {
    "positive": ("5/5", "5 stars", "4/5", "9/10", "10/10", "Five stars", "4.5 out of 5", "8 out of 10"),
    "negative": ("1/5", "1 star", "2/5", "2/10", "0/10", "One star", "1.5 out of 5", "3 out of 10"),
    "neutral": ("3/5", "3 stars", "5/10", "Three stars", "3 out of 5", "5 out of 10"),
}
_LEADS = (
    "",
    "",
    "",
    "",
    "[Bought|Got|Ordered|Tried|Used] it [last week|in May|a month ago|twice|for my birthday]. ",
    "[We went|I went|We came] [last weekend|with friends|for the first time|on a Sunday]. ",
    "[First visit|Second time here|My honest opinion|Update after a month]: ",
)


def _aspect(rng: Random, domain: Domain, label: str) -> tuple[str, str, str]:
    """(subject, verb, word of that opinion) of one aspect."""
    head, *words = (part.strip() for part in rng.choice(domain.aspects).split(":"))
    subject, verb = head.rsplit(" ", 1)
    return subject, verb, rng.choice(words[LABELS.index(label)].split("|"))


def _past(rng: Random, verb: str) -> str:
    return {"is": "was", "are": "were"}[verb] if rng.random() < 0.4 else verb


def _claim(rng: Random, domain: Domain, label: str) -> str:
    """One clause of that opinion, without a capital or a full stop."""
    if label != "neutral" and rng.random() < 0.3:
        return rng.choice(domain.good if label == "positive" else domain.bad)
    if label != "neutral" and rng.random() < 0.18:
        return _negation(rng, domain, label)
    subject, verb, word = _aspect(rng, domain, label)
    plain = label == "neutral" or word.startswith(
        ("a ", "of ", "far ", "very ", "full ", "worth", "painfully", "completely")
    )
    return f"{subject} {_past(rng, verb)} {'' if plain else rng.choice(_STRONGLY)}{word}"


def _negation(rng: Random, domain: Domain, label: str) -> str:
    subject, verb, word = _aspect(rng, domain, _OPPOSITE[label])
    verb = _past(rng, verb)
    if label == "positive":
        return f"{subject} {verb} {rng.choice((f'never {word}', f'not {word} at all', f'anything but {word}'))}"
    return f"{subject} {verb} {rng.choice((f'not {word} at all', f'anything but {word}'))}"


def _verdict(rng: Random, domain: Domain, label: str) -> str:
    noun = rng.choice(domain.nouns)
    pool = [v for v in _VERDICTS[label] if not (noun.endswith("s") and "{noun}" in v)]
    return expand(rng, rng.choice(pool)).replace("{noun}", noun)


def _opposed(rng: Random, domain: Domain, label: str) -> tuple[str, str]:
    """(a mild claim of the opposite opinion, a claim of this one), about different things."""
    subject, verb, word = _aspect(rng, domain, _OPPOSITE[label])
    claim = _claim(rng, domain, label)
    while claim.startswith(subject):
        claim = _claim(rng, domain, label)
    return f"{subject} {_past(rng, verb)} {word}", claim


def _claims(rng: Random, domain: Domain, label: str, count: int) -> list[str]:
    drawn: dict[str, str] = {}
    for _ in range(count * 3):
        claim = _claim(rng, domain, label)
        drawn.setdefault(" ".join(claim.split()[:2]), claim)
    return list(drawn.values())[:count]


def _plain(rng: Random, domain: Domain, label: str) -> str:
    """One or two claims of one opinion, and often a verdict."""
    claims = _claims(rng, domain, label, rng.choice((1, 1, 2, 2, 3)))
    if len(claims) > 1 and rng.random() < 0.6:
        claims = [f"{claims[0]} and {claims[1]}", *claims[2:]]
    ends = rng.choice((".", ".", ".", "!")) if label != "neutral" else "."
    sentences = [upper_first(c) + ends for c in claims]
    if rng.random() < 0.65:
        sentences.insert(rng.choice((0, len(sentences))), _verdict(rng, domain, label) + ends)
    return " ".join(sentences)


def _contrast(rng: Random, domain: Domain, label: str) -> str:
    """Concedes the opposite, then comes down clearly on the label's side."""
    other, claim = _opposed(rng, domain, label)
    verdict = lower_first(_verdict(rng, domain, label))
    turn = expand(rng, rng.choice(_TURNS))
    if rng.random() < 0.5:
        joiner = rng.choice((", but overall: ", ", but still: ", ". Even so: ", ". All in all: "))
        return upper_first(f"{other}{joiner}{verdict}.")
    form = rng.choice(
        (
            f"{other}, but {claim} and that is what counts. {upper_first(verdict)}.",
            f"Although {other}, {claim}. {upper_first(verdict)}.",
            f"{other}. {turn}, {claim}. {upper_first(verdict)}.",
            f"I {_rumour(rng, label)}, but {claim}. {upper_first(verdict)}.",
            f"{upper_first(verdict)}, even though {other}.",
        )
    )
    return upper_first(form)


def _rumour(rng: Random, label: str) -> str:
    fears = ("it would be a waste of money", "it would be bad", "the worst", "it would be boring", "I would regret it")
    hopes = ("it would be great", "for something special", "for a treat", "it would be worth it", "I would love it")
    return f"feared {rng.choice(fears)}" if label == "positive" else f"hoped {rng.choice(hopes)}"


def _mixed(rng: Random, domain: Domain) -> str:
    """Good and bad in equal parts, and a verdict that says so."""
    parts = list(_opposed(rng, domain, rng.choice(("positive", "negative"))))
    rng.shuffle(parts)
    joiner = rng.choice((", but ", ", on the other hand ", ". Then again, ", ", yet "))
    return upper_first(f"{joiner.join(parts)}. {_verdict(rng, domain, 'neutral')}.")


def _facts(rng: Random, domain: Domain) -> str:
    return " ".join(rng.sample(domain.facts, rng.choice((1, 2, 2))))


def _short(rng: Random, domain: Domain, label: str) -> str:
    return _verdict(rng, domain, label) + rng.choice((".", "!", "") if label != "neutral" else (".", ""))


def _told(rng: Random, domain: Domain, label: str) -> str:
    """One or two reviews that tell, and now and then a verdict or a fact beside them."""
    texts = [expand(rng, text) for text in rng.sample(TOLD[label], rng.choice((1, 1, 1, 2)))]
    if rng.random() < 0.2:
        texts.insert(rng.randrange(len(texts) + 1), _verdict(rng, domain, label) + ".")
    elif rng.random() < 0.1:
        texts.insert(0, rng.choice(domain.facts))
    return " ".join(texts)


def draw_review(rng: Random, domain: Domain, label: str) -> str:
    """A review in which the label is the only fair reading."""
    roll = rng.random()
    if label == "neutral":
        text = _mixed(rng, domain) if roll < 0.28 else _facts(rng, domain) if roll < 0.42 else ""
    else:
        text = _contrast(rng, domain, label) if roll < 0.33 else ""
    if not text:
        text = _short(rng, domain, label) if roll > 0.9 else _plain(rng, domain, label)
        if rng.random() < 0.2:
            text = f"{rng.choice(domain.facts)} {text}"
    if rng.random() < 0.12:
        rating = rng.choice(_RATINGS[label])
        text = rng.choice((f"{text} {rating}.", f"{rating}. {text}", f"{rating} - {text}"))
    elif rng.random() < 0.25:
        text = expand(rng, rng.choice(_LEADS)) + text
    roll = rng.random()
    return text.lower() if roll < 0.08 else text.upper() if roll < 0.1 and label != "neutral" else text


def payload(rng: Random) -> str:
    return _training_review(rng, rng.choice(LABELS))


def _training_review(rng: Random, label: str) -> str:
    draw = _told if rng.random() < TOLD_SHARE else draw_review
    return draw(rng, rng.choice(DOMAINS), label)


def _held_out_review(rng: Random) -> tuple[str, str]:
    """(label, review)."""
    if rng.random() < 0.5:
        return rng.choice(HELD_OUT_REVIEWS)
    label = rng.choice(LABELS)
    domain = HELD_OUT_DOMAIN if rng.random() < 0.5 else rng.choice(DOMAINS)
    return label, draw_review(rng, domain, label)


def generate(rng: Random, *, held_out: bool) -> tuple[str, str]:
    if held_out:
        label, text = _held_out_review(rng)
        return ask(rng, HELD_OUT, text), label
    label = rng.choice(LABELS)
    return ask(rng, TRAIN, _training_review(rng, label)), label


TASK = DemoTask(
    name="sentiment",
    description="Says whether a review is positive, negative or neutral.",
    samples=(
        "Is this review positive, negative or neutral?\nThe food was cold and the waiter ignored us all night.",
        "Classify the sentiment: The screen is gorgeous and it works perfectly. Highly recommended!",
        '"It does the job, no more and no less." - sentiment?',
        "Although the room was tiny, we felt at home from the first minute.\n\nWhat is the sentiment of this review?",
    ),
    generate=generate,
    payload=payload,
)
