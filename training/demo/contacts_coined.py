"""Names, brands, user names and number formats that no list holds, so that they are copied and not remembered.

Knows nothing of texts and fields.
"""

# Word lists read better as split text than as one literal a line.
# ruff: noqa: SIM905

from collections.abc import Sequence
from random import Random

_STARTS = "B Br C Ch D Dr F G Gr H J K Kr L M N P Q R S Sh St T Th Tr V W Y Z Al An El Er Il In Or Ul Um Ew".split()
_MIDDLES = "a e i o u ai ea ie oa y ar en in or ul el an".split()
_ENDS = (
    "b ck d ff ga k ka l la lin m ma mer n na nd ne nsky r ra rd ric s sen sz t ta tov tt v va vich x y z zo".split()
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SECOND_WORDS = "River Point Bay House Works Line Hill Field Lab Gate Park Road Net Tech Craft Port Wood Data".split()


def name(rng: Random) -> str:
    """One part of a person's name."""
    word = rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_ENDS)
    if rng.random() < 0.4:
        word += rng.choice(_MIDDLES) + rng.choice(_ENDS)
    return f"{word}-{name(rng)}" if rng.random() < 0.04 else word


def company(rng: Random, kinds: Sequence[str]) -> str:
    """A brand, alone or with what kind of firm it is."""
    brand = rng.choice((name(rng), name(rng), f"{name(rng)} {rng.choice(_SECOND_WORDS)}", f"{name(rng)} & {name(rng)}"))
    if rng.random() < 0.1:
        brand = rng.choice((brand.upper(), brand.replace(" ", ""), f"{brand} {rng.randrange(2, 100)}"))
    return brand if rng.random() < 0.35 else f"{brand} {rng.choice(kinds)}"


def user(rng: Random) -> str:
    """What stands before the @."""
    parts = [
        rng.choice(
            (name(rng).lower(), "".join(rng.choices(_LETTERS, k=rng.randrange(1, 5))), str(rng.randrange(1, 2030)))
        )
        for _ in range(rng.choice((1, 2, 2, 3)))
    ]
    return rng.choice((".", "_", "-", "", "+")).join(parts)


def number_format(rng: Random) -> str:
    """A telephone number's digits as `#`, in groups."""
    groups = ["#" * rng.randrange(2, 6) for _ in range(rng.choice((2, 3, 3, 4)))]
    if rng.random() < 0.25:
        groups[0] = f"({groups[0]})"
    number = rng.choice((" ", " ", "-", ".", "/")).join(groups)
    if rng.random() < 0.4:
        number = f"{rng.choice(('+', '+', '00'))}{rng.choice('123456789')}# {number}"
    return f"{number} ext. ##" if rng.random() < 0.04 else number
