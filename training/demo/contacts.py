"""Contact text to one line of JSON; knows names, numbers and layouts, nothing of training."""

import json
import unicodedata
from random import Random

from training.demo import contacts_coined as coined
from training.demo import contacts_phrases as words
from training.demo.contacts_words import sentence
from training.demo.task import DemoTask
from training.demo.wording import ask, fill

KEYS = ("name", "email", "phone", "company")
_PHONES = (
    "+1 ### ### ####",
    "+1-###-###-####",
    "+1 (###) ###-####",
    "(###) ###-####",
    "###-###-####",
    "###.###.####",
    "### ### ####",
    "##########",
    "+44 20 #### ####",
    "+44 7### ######",
    "0#### ######",
    "+49 30 ######",
    "+49 170 #######",
    "030/######",
    "+33 # ## ## ## ##",
    "0# ## ## ## ##",
    "+34 ### ### ###",
    "+91 ##### #####",
    "+81 3-####-####",
    "+46 8 ### ## ##",
    "555-####",
    "+1###555####",
)
_DOMAINS = ("gmail.com", "outlook.com", "example.com", "mail.com", "yahoo.com", "web.de", "proton.me", "example.org")
_SHAPES = ("nepc", "nep", "nec", "npc", "ne", "np", "epc", "ec", "pc", "ep")
_WEIGHTS = (30, 14, 14, 12, 7, 7, 5, 4, 4, 3)
MADE_UP = 0.3


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return "".join(c for c in plain.lower() if c.isalnum())


def _phone(rng: Random, pattern: str) -> str:
    return "".join(str(rng.randrange(2, 10) if c == "#" else c) for c in pattern)


def _company(rng: Random) -> str:
    brand = rng.choice(words.BRANDS if rng.random() < 0.5 else words.MORE_BRANDS)
    return brand if rng.random() < 0.15 else f"{brand} {rng.choice(words.KINDS)}"


def _email(rng: Random, first: str, last: str, company: str) -> str:
    f, n = _ascii(first), _ascii(last)
    brand = _ascii(company.split(" ")[0])
    users = (f"{f}.{n}", f"{f}.{n}", f"{f[0]}{n}", f"{f[0]}.{n}", f, f"{f}_{n}", f"{n}.{f}", f"{f}{n[0]}", f"{f}{n}")
    user = (
        _handle(rng)
        if rng.random() < 0.2
        else rng.choice((*users, "info", "sales", "contact", "office", f"{f}{rng.randrange(1, 99)}"))
    )
    tops = ("com", "com", "de", "org", "net", "io", "co.uk", "fr", "example")
    domain = rng.choice(_DOMAINS) if rng.random() < 0.25 else f"{brand}.{rng.choice(tops)}"
    address = f"{user}@{domain}"
    return address.title() if rng.random() < 0.01 else address


def _handle(rng: Random) -> str:
    """A user name that no name gives away, so that addresses are copied and not guessed."""
    first, second = rng.sample(words.HANDLES, 2)
    number = rng.choice(("", "", str(rng.randrange(1, 100)), str(rng.randrange(1950, 2030))))
    return first + rng.choice(("", "", ".", "_", "-")) + second + number


def draw_fields(rng: Random, shape: str, *, made_up: float = 0.0) -> dict[str, str]:
    """The fields of one contact under their one-letter slots; `shape` says which ("ne": name and email).

    `made_up` is the share of names, brands, user names and number formats that no list holds.
    """
    first = coined.name(rng) if rng.random() < made_up else rng.choice(words.FIRST)
    last = coined.name(rng) if rng.random() < made_up else rng.choice(words.LAST).replace("_", " ")
    middle = f" {rng.choice('ABCDEFGHJKLMPRST')}." if rng.random() < 0.06 else ""
    company = coined.company(rng, words.KINDS) if rng.random() < made_up else _company(rng)
    name = f"{first}{middle} {last}"
    name = name.upper() if rng.random() < 0.06 else name
    email = _email(rng, first, last, company)
    if rng.random() < made_up / 2:
        email = f"{coined.user(rng)}@{email.split('@')[1]}"
    phone = _phone(rng, coined.number_format(rng) if rng.random() < made_up else rng.choice(_PHONES))
    drawn = {"n": name, "e": email, "p": phone, "c": company}
    return {slot: drawn[slot] for slot in "nepc" if slot in shape}


def _card(rng: Random, fields: dict[str, str]) -> str:
    order = [s for s in rng.choice(("nepc", "ncpe", "ncep", "cnpe", "cnep", "npec")) if s in fields]
    extras = {"t": rng.choice(words.TITLES), "w": rng.choice(words.TOWNS)}
    labelled = rng.random() < 0.5
    lines = [rng.choice([x for x in words.LINES[s] if (":" in x or ". " in x) == labelled]) for s in order]
    if rng.random() < 0.25:
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(words.EXTRAS))
    if rng.random() < 0.2 and order[0] == "n":
        lines.insert(0, rng.choice(words.OPENERS))
    joiner = rng.choice(("\n", "\n", "\n", "\n", " | ", ", ", " / ", "; "))
    if any(line in words.OPENERS for line in lines):
        joiner = "\n"
    return fill(joiner.join(lines), fields | extras)


def draw_text(rng: Random, fields: dict[str, str], *, held_out: bool) -> str:
    """Free text that gives exactly these fields."""
    if rng.random() < (0.55 if held_out else 0.45):
        return _card(rng, fields)
    if not held_out and rng.random() < 0.7:
        return sentence(rng, fields)
    sentences = words.HELD_OUT_SENTENCES if held_out else words.SENTENCES
    extras = {"t": rng.choice(words.TITLES), "w": rng.choice(words.TOWNS)}
    return fill(rng.choice(sentences["".join(fields)]), fields | extras)


def to_json(fields: dict[str, str]) -> str:
    slots = dict(zip(KEYS, "nepc", strict=True))
    return json.dumps({key: fields.get(slot) for key, slot in slots.items()}, ensure_ascii=False)


def payload(rng: Random) -> str:
    return draw_text(rng, draw_fields(rng, rng.choices(_SHAPES, _WEIGHTS)[0], made_up=MADE_UP), held_out=False)


def generate(rng: Random, *, held_out: bool) -> tuple[str, str]:
    fields = draw_fields(rng, rng.choices(_SHAPES, _WEIGHTS)[0], made_up=0.0 if held_out else MADE_UP)
    text = draw_text(rng, fields, held_out=held_out)
    return ask(rng, words.HELD_OUT if held_out else words.TRAIN, text), to_json(fields)


TASK = DemoTask(
    name="contacts",
    description="Turns contact text into JSON with name, email, phone and company.",
    samples=(
        "Extract the contact details as JSON:\nJane Doe\nAcme Ltd\njane.doe@acme.com\n+44 20 7946 0958",
        "You can reach Omar Haddad at omar@nova.io or 555-2943.\n\nTurn this contact into JSON.",
        "contact to JSON: Lena Weber, Cobalt GmbH, +49 30 482211",
        "What are the contact details here? Answer in JSON.\nCall Priya Rao from Lumen Labs on (212) 555-7788.",
    ),
    generate=generate,
    payload=payload,
)
