"""Whose first tokens are computed while experts are asked."""

from server.engine.lately_chosen import LatelyChosen


def test_few_are_all_among_them_whether_known_or_not() -> None:
    assert LatelyChosen(2).among(["a", "b"]) == {"a", "b"}


def test_of_many_only_those_chosen_last_are() -> None:
    chosen = LatelyChosen(2)
    assert chosen.among(["a", "b", "c"]) == set()
    for digest in ("a", "b", "a", "c"):  # "a" again, so that "b" is the one forgotten
        chosen.note(digest)
    assert chosen.among(["a", "b", "c"]) == {"a", "c"}
    assert chosen.among(["b", "d", "e"]) == set()
