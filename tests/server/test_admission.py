"""Permits, activity and pins: plain counting."""

import pytest

from expert_store import ExpertVersion
from server.admission import Activity, Admission
from server.errors import TooBusy
from server.metrics import LoadedExperts
from server.pins import Pins
from tests.support.catalogs import make_version


def test_places_are_given_until_there_are_none_and_come_back() -> None:
    admission = Admission(max_running=1, max_queue=1)
    with admission.permit():
        with admission.permit():
            with pytest.raises(TooBusy) as caught, admission.permit():
                pass
            assert 1 <= caught.value.retry_after_seconds <= 60
        with admission.permit():
            pass


def test_a_place_comes_back_after_an_error() -> None:
    admission = Admission(max_running=1, max_queue=0)
    with pytest.raises(ZeroDivisionError), admission.permit():
        raise ZeroDivisionError
    with admission.permit():
        pass


def test_activity_tells_who_waits_and_who_runs() -> None:
    told: list[tuple[int, int, LoadedExperts]] = []
    activity = Activity(lambda *state: told.append(state))
    with activity.waiting.join("sql"):
        assert told[-1] == (1, 0, LoadedExperts(frozenset(), frozenset({"sql"})))
    with activity.running.join() as one, activity.running.join() as two:
        one.use("sql")
        two.use("sql")
        assert told[-1] == (0, 2, LoadedExperts(frozenset({"sql"}), frozenset()))
        one.use()
        assert told[-1][2].running == {"sql"}
    assert told[-1] == (0, 0, LoadedExperts(frozenset(), frozenset()))


def test_files_of_a_deleted_version_go_when_nobody_holds_it() -> None:
    gone: list[ExpertVersion] = []
    pins = Pins(gone.append)
    sql, dates = make_version("sql"), make_version("dates")
    with pins.hold([sql, dates]):
        with pins.hold([sql]) as second:
            pins.delete(sql)
            pins.delete(dates)
            second.narrow(sql)
        assert gone == []
    assert sorted(version.name for version in gone) == ["dates", "sql"]
    assert not pins.is_held(sql)


def test_files_nobody_holds_go_at_once() -> None:
    gone: list[ExpertVersion] = []
    pins = Pins(gone.append)
    pins.delete(make_version("sql"))
    assert [version.name for version in gone] == ["sql"]


def test_a_request_that_several_experts_answer_counts_for_each() -> None:
    told: list[tuple[int, int, LoadedExperts]] = []
    activity = Activity(lambda waiting, running, experts: told.append((waiting, running, experts)))
    with activity.running.join() as seat:
        seat.use("sql", "dates")
        assert told[-1][2].running == {"sql", "dates"}
        seat.use("dates")
        assert told[-1][2].running == {"dates"}
    assert told[-1][2].running == frozenset()


def test_narrowing_gives_up_all_but_those_named() -> None:
    gone: list[ExpertVersion] = []
    pins = Pins(gone.append)
    sql, dates, logs = make_version("sql"), make_version("dates"), make_version("logs")
    with pins.hold([sql, dates, logs]) as hold:
        hold.narrow(sql, logs)
        pins.delete(dates)
        pins.delete(logs)
        assert gone == [dates]
    assert gone == [dates, logs]


def test_narrowing_gives_up_all_but_one() -> None:
    gone: list[ExpertVersion] = []
    pins = Pins(gone.append)
    sql, dates = make_version("sql"), make_version("dates")
    with pins.hold([sql, dates, sql]) as hold:
        hold.narrow(sql)
        pins.delete(dates)
        assert gone == [dates]
        assert pins.is_held(sql)
