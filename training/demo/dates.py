"""Dates as people write them, to ISO 8601; knows calendars and spellings, nothing of training."""

from collections.abc import Callable
from datetime import date, timedelta
from random import Random

from training.demo.dates_phrases import HELD_OUT, HELD_OUT_SENTENCES, SENTENCES, TRAIN
from training.demo.task import DemoTask
from training.demo.wording import ask, expand

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
WEEKDAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_SHORT_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_SHORT_WEEKDAYS = (("Mon",), ("Tue", "Tues"), ("Wed",), ("Thu", "Thurs"), ("Fri",), ("Sat",), ("Sun",))
_UNITS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
_TEENS = [
    "tenth",
    "eleventh",
    "twelfth",
    "thirteenth",
    "fourteenth",
    "fifteenth",
    "sixteenth",
    "seventeenth",
    "eighteenth",
    "nineteenth",
]
ORDINALS = (
    *_UNITS,
    *_TEENS,
    "twentieth",
    *(f"twenty-{u}" for u in _UNITS),
    "thirtieth",
    "thirty-first",
)

_Surface = Callable[[Random, date], str]


def nth(day: int) -> str:
    """1 -> "1st", 12 -> "12th"."""
    suffix = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def _month(rng: Random, d: date) -> str:
    if rng.random() < 0.6:
        return MONTHS[d.month - 1]
    short = "Sept" if d.month == 9 and rng.random() < 0.4 else _SHORT_MONTHS[d.month - 1]
    return short + "." if d.month != 5 and rng.random() < 0.2 else short


def _weekday(rng: Random, d: date) -> str:
    return WEEKDAYS[d.weekday()] if rng.random() < 0.6 else rng.choice(_SHORT_WEEKDAYS[d.weekday()])


def _day(rng: Random, d: date) -> str:
    return rng.choice((str(d.day), str(d.day), nth(d.day), nth(d.day), f"{d.day:02d}"))


def _month_first(rng: Random, d: date) -> str:
    return f"{_month(rng, d)} {_day(rng, d)}{rng.choice((',', ',', ''))} {d.year}"


def _day_first(rng: Random, d: date) -> str:
    return f"{_day(rng, d)} {_month(rng, d)}{rng.choice(('', '', '', ','))} {d.year}"


def _day_of(rng: Random, d: date) -> str:
    the, gap = rng.choice(("the ", "the ", "")), rng.choice((" ", " ", ", "))
    return f"{the}{nth(d.day)} of {MONTHS[d.month - 1]}{gap}{d.year}"


def _words(rng: Random, d: date) -> str:
    month, day = MONTHS[d.month - 1], ORDINALS[d.day - 1]
    return rng.choice(
        (
            f"the {day} of {month} {d.year}",
            f"the {day} of {month}, {d.year}",
            f"{month} {day}, {d.year}",
            f"{month} the {day}, {d.year}",
            f"{month} the {nth(d.day)}, {d.year}",
            f"{month} the {nth(d.day)} {d.year}",
        )
    )


def _with_weekday(rng: Random, d: date) -> str:
    return f"{_weekday(rng, d)}{rng.choice((',', ',', ''))} {rng.choice((_month_first, _day_first))(rng, d)}"


def _weekday_the(rng: Random, d: date) -> str:
    return f"{WEEKDAYS[d.weekday()]}{rng.choice((',', ''))} the {nth(d.day)} of {MONTHS[d.month - 1]} {d.year}"


def _dotted(rng: Random, d: date) -> str:
    return rng.choice((f"{d.day:02d}.{d.month:02d}.{d.year}", f"{d.day}.{d.month}.{d.year}"))


def _slashed(rng: Random, d: date) -> str:
    return rng.choice((f"{d.year}/{d.month:02d}/{d.day:02d}", f"{d.year}/{d.month}/{d.day}"))


def _joined(rng: Random, d: date) -> str:
    short = _SHORT_MONTHS[d.month - 1]
    return rng.choice(
        (
            f"{d.day:02d}-{short}-{d.year}",
            f"{d.day}-{short}-{d.year}",
            f"{d.day}-{MONTHS[d.month - 1]}-{d.year}",
            f"{d.day:02d}{short}{d.year}",
            f"{d.day}/{short}/{d.year}",
            f"{short}-{d.day:02d}-{d.year}",
        )
    )


def _year_first(rng: Random, d: date) -> str:
    month = _month(rng, d)
    return rng.choice(
        (f"{d.year} {month} {d.day}", f"{d.year}, {month} {nth(d.day)}", f"{d.year} {month} {nth(d.day)}")
    )


def _machine(rng: Random, d: date) -> str:
    clock = f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    short, day = _SHORT_MONTHS[d.month - 1], _SHORT_WEEKDAYS[d.weekday()][0]
    return rng.choice(
        (
            f"{d.year}-{d.month}-{d.day}",
            f"{d.isoformat()}T{clock}:00Z",
            f"{d.isoformat()} {clock}",
            f"{day}, {d.day:02d} {short} {d.year} {clock}:00 GMT",
            f"{day} {short} {d.day} {clock}:09 {d.year}",
            f"{d.year}{d.month:02d}{d.day:02d}",
        )
    )


def _with_clock(rng: Random, d: date) -> str:
    hour, minute = rng.randrange(1, 13), rng.choice((0, 15, 30, 45))
    clock = rng.choice(
        (f"{hour}:{minute:02d}", f"{hour} pm", f"{hour}am", f"{hour}:{minute:02d} PM", f"{hour} o'clock")
    )
    base = rng.choice((_month_first, _day_first, _dotted, _slashed))(rng, d)
    return rng.choice((f"{base}, {clock}", f"{base} at {clock}", f"{clock} on {base}", f"{base} {clock}"))


_SURFACES: tuple[tuple[_Surface, int], ...] = (
    (_month_first, 22),
    (_day_first, 22),
    (_day_of, 11),
    (_words, 8),
    (_with_weekday, 10),
    (_weekday_the, 3),
    (_dotted, 12),
    (_slashed, 10),
    (_joined, 7),
    (_year_first, 4),
    (_machine, 5),
    (_with_clock, 5),
)


def draw_date(rng: Random) -> date:
    """A day between 1900 and 2099, most of them near our time."""
    first, last = (1950, 2035) if rng.random() < 0.8 else (1900, 2099)
    start = date(first, 1, 1)
    return start + timedelta(days=rng.randrange((date(last, 12, 31) - start).days + 1))


def write_date(rng: Random, day: date) -> str:
    """One of the spellings people use for a day."""
    surfaces, weights = zip(*_SURFACES, strict=True)
    text: str = rng.choices(surfaces, weights)[0](rng, day)
    roll = rng.random()
    return text.lower() if roll < 0.1 else text.upper() if roll < 0.18 else text


def payload(rng: Random) -> str:
    return write_date(rng, draw_date(rng))


def generate(rng: Random, *, held_out: bool) -> tuple[str, str]:
    day = draw_date(rng)
    text = write_date(rng, day)
    book = HELD_OUT if held_out else TRAIN
    alone = rng.random() < 0.6
    if not alone:
        sentence = expand(rng, rng.choice(HELD_OUT_SENTENCES if held_out else SENTENCES))
        text = sentence.replace("{d}", text)
    return ask(rng, book, text, inline=alone), day.isoformat()


TASK = DemoTask(
    name="dates",
    description="Turns a date written any human way into ISO 8601 (YYYY-MM-DD).",
    samples=(
        "Convert this date to ISO 8601: March 3rd, 2021",
        "What is the 14th of July 1998 in YYYY-MM-DD?",
        "The meeting was moved to Tuesday, 5 February 2019. Give the date in ISO format.",
        "to ISO: 12.04.2020",
    ),
    generate=generate,
    payload=payload,
)
