"""Whose first tokens are computed while experts are asked."""

from server.engine.lately_chosen import _CHOICES, LatelyChosen


def test_at_first_all_of_few_are() -> None:
    chosen = LatelyChosen(2)
    assert chosen.among(["a", "b"]) == {"a", "b"}
    for _ in range(_CHOICES - 1):
        chosen.note("a")
    assert chosen.among(["a", "b"]) == {"a", "b"}


def test_of_few_those_are_that_are_chosen_now_and_then() -> None:
    chosen = LatelyChosen(2)
    for number in range(2 * _CHOICES):
        chosen.note("b" if number == _CHOICES else "a")
    assert chosen.among(["a", "b"]) == {"a", "b"}
    chosen.note("a")
    assert chosen.among(["a", "b"]) == {"a"}
    assert chosen.among(["b", "c"]) == set()


def test_of_many_only_those_chosen_last_are() -> None:
    chosen = LatelyChosen(2)
    assert chosen.among(["a", "b", "c"]) == set()
    for digest in ("a", "b", "a", "c"):  # "a" again, so that "b" is the one forgotten
        chosen.note(digest)
    assert chosen.among(["a", "b", "c"]) == {"a", "c"}
    assert chosen.among(["b", "d", "e"]) == set()
