"""Puts an instruction and an input together the many ways people do; knows no task.

Templates: `[a|b]` is a choice (it may nest), `{name}` a slot filled by the caller.
"""

import re
from dataclasses import dataclass
from random import Random

_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")

_POLITE = (
    "Please {c}",
    "Please {c}",
    "please {c}",
    "{C}, please",
    "Kindly {c}",
    "Hi! Please {c}",
    "Hello, please {c}",
    "I need you to {c}",
    "I want you to {c}",
    "I'd like you to {c}",
    "Your task is to {c}",
    "Your task: {c}",
    "Help me {c}",
    "You are a helpful assistant. {C}",
    "Now {c}",
    "OK, {c}",
    "Quick one: {c}",
)
_POLITE_QUESTIONS = (
    "Can you {c}?",
    "Could you {c}?",
    "Could you please {c}?",
    "Can you please {c}?",
    "Would you {c}?",
    "Hey, can you {c}?",
    "Hi, could you {c}?",
    "Would you mind helping me to {c}?",
    "Are you able to {c}?",
)
_TAILS = (
    "Just the answer.",
    "Nothing else.",
    "No explanation.",
    "Do not explain.",
    "Answer only with the result.",
    "Keep it short.",
    "Thanks!",
    "Thank you.",
)
_BEFORE = (
    "{i}: {x}",
    "{i}: {x}",
    "{i}: {x}",
    "{i}:\n{x}",
    "{i}:\n{x}",
    "{i}:\n\n{x}",
    "{i}:\n\n{x}",
    "{i}\n{x}",
    "{i}\n\n{x}",
    "{i}.\n{x}",
    "{i}.\n\n{x}",
    "{i}. {x}",
    '{i}: "{x}"',
    '{i}:\n"{x}"',
    '{i}.\n\n"{x}"',
    "{i}: '{x}'",
    "{i} - {x}",
    "{i}: `{x}`",
    "{i}.\n{L}: {x}",
    "{i}.\n\n{L}: {x}",
    "{i}\n\n{L}:\n{x}",
    "{i}.\n{L}: {x}\n{O}:",
    "{i}.\n\n{L}: {x}\n\n{O}:",
    "{i}:\n```\n{x}\n```",
    "{i}\n---\n{x}",
    '{i}:\n"""\n{x}\n"""',
    "Task: {i}\n{L}: {x}",
    "Instruction: {i}.\n{L}: {x}\n{O}:",
    "### Instruction:\n{i}\n\n### Input:\n{x}",
    "{i}.\n<text>\n{x}\n</text>",
    "{i}:\n> {x}",
)
_AFTER = (
    "{x}\n{i}",
    "{x}\n{i}.",
    "{x}\n\n{i}",
    "{x}\n\n{i}.",
    '"{x}"\n{i}',
    '"{x}"\n\n{i}.',
    '"{x}" - {i}',
    "{x}\n---\n{i}",
    "{L}: {x}\n{i}",
    "{L}: {x}\n\n{i}.",
    "{L}:\n{x}\n\n{i}",
    "```\n{x}\n```\n{i}",
    "Here is the {l}: {x}\n{i}.",
    "Here is a {l}:\n{x}\n\n{i}.",
    "{x}\n^ {i}",
    "{x} {i}.",
    "{x} {i}.",
)
_OUTPUTS = ("Output", "Answer", "Result", "Response")


@dataclass(frozen=True)
class Phrasebook:
    """Instruction wordings: orders (take a "please"), remarks (stand as they are), inline (input at `{x}`).

    `inline_share` of the messages whose input is one line are inline ones.
    """

    orders: tuple[str, ...]
    remarks: tuple[str, ...]
    inline: tuple[str, ...] = ()
    inline_share: float = 0.25
    tails: tuple[str, ...] = ()
    labels: tuple[str, ...] = ("Input", "Text")

    def phrases(self) -> tuple[str, ...]:
        return self.orders + self.remarks + self.inline


def expand(rng: Random, template: str) -> str:
    """Settles every `[a|b]` choice of a template; slots stay."""
    while match := _CHOICE.search(template):
        picked = rng.choice(match.group(1).split("|"))
        template = template[: match.start()] + picked + template[match.end() :]
    return template


def lower_first(text: str) -> str:
    """Lower-cases the first letter unless the first word is an acronym or "I"."""
    first = text.split(" ", 1)[0]
    return text if first != first.capitalize() or first == "I" else text[:1].lower() + text[1:]


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def fill(template: str, slots: dict[str, str]) -> str:
    """Fills `{name}` slots in one pass, so that braces inside the values are left alone."""
    return re.sub(r"\{(\w+)\}", lambda m: slots.get(m.group(1), m.group(0)), template)


def roughen(rng: Random, text: str) -> str:
    """Now and then writes as people in a hurry do: lower case, capitals, a slip of the fingers."""
    roll = rng.random()
    if roll < 0.12:
        return text.lower()
    if roll < 0.14:
        return text.upper()
    if roll < 0.19:
        return _typo(rng, text)
    return text


def _typo(rng: Random, text: str) -> str:
    spots = [m.start() for m in re.finditer(r"(?<=[a-z])[a-z](?=[a-z])", text)]
    if not spots:
        return text
    at = rng.choice(spots)
    if rng.random() < 0.5:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def polite(rng: Random, order: str) -> str:
    """An imperative as a person may put it, often left plain."""
    if rng.random() < 0.55:
        return order
    one_sentence = not re.search(r"[.?!:;]", order)
    frames: tuple[str, ...] = _POLITE + _POLITE_QUESTIONS if one_sentence else _POLITE[:12]
    if order.endswith((".", "?", "!")):
        frames = tuple(f for f in frames if f.endswith("{c}"))
    return fill(rng.choice(frames), {"c": lower_first(order), "C": order})


def instruction(rng: Random, book: Phrasebook) -> str:
    """One instruction that can stand before or after its input."""
    orders = bool(book.orders) and (not book.remarks or rng.random() < 0.7)
    text = expand(rng, rng.choice(book.orders if orders else book.remarks))
    text = polite(rng, text) if orders else text
    if orders and rng.random() < 0.15:
        tail = expand(rng, rng.choice(book.tails + _TAILS if not book.tails or rng.random() < 0.4 else book.tails))
        text = f"{text} {tail}" if text.endswith((".", "?", "!")) else f"{text}. {tail}"
    return roughen(rng, text)


def place(rng: Random, text: str, payload: str, labels: tuple[str, ...]) -> str:
    """Sets an instruction before (two times in three) or after its input."""
    frames = _BEFORE if rng.random() < 0.67 else _AFTER
    frame = rng.choice([f for f in frames if _fits(f, text, payload)])
    label = rng.choice(labels)
    slots = {"i": text, "x": payload, "L": label, "l": label.lower(), "O": rng.choice(_OUTPUTS)}
    return fill(frame, slots)


def _fits(frame: str, text: str, payload: str) -> bool:
    stopped = text.endswith((".", "?", "!", ":"))
    if stopped and re.search(r"\{i\}[:.]| - \{i\}|\{i\} -", frame):
        return False
    if not stopped and "{i}. {x}" in frame and not payload[:1].isupper():
        return False
    if frame == "{x} {i}." and ("\n" in payload or not payload.endswith((".", "!", "?"))):
        return False
    quoted = '"{x}"' in frame or "'{x}'" in frame or "`{x}`" in frame or "> {x}" in frame
    return not (quoted and ("\n" in payload or '"' in payload))


def ask(rng: Random, book: Phrasebook, payload: str, *, inline: bool = True) -> str:
    """A whole user message: one of the book's instructions with its input."""
    if inline and book.inline and rng.random() < book.inline_share and "\n" not in payload:
        parts = expand(rng, rng.choice(book.inline)).split("{x}")
        return payload.join([roughen(rng, part) if part.strip() else part for part in parts])
    return place(rng, instruction(rng, book), payload, book.labels)
