"""The one table from exceptions to statuses."""

import inspect

import pytest
from starlette.exceptions import HTTPException

from expert_store import errors as store_errors
from server import errors as relay_errors
from server.api import errors as api_errors
from server.api.errors import ERROR_TABLE, error_codes, error_response, translate


@pytest.mark.parametrize("module", [relay_errors, store_errors, api_errors])
def test_every_exception_of_the_tree_is_in_the_table(module: object) -> None:
    roots = (relay_errors.RelayError, store_errors.StoreError)
    found = {cls for _, cls in inspect.getmembers(module, inspect.isclass) if issubclass(cls, roots)}
    assert found - set(ERROR_TABLE) == set()


def test_statuses_and_types_agree() -> None:
    for kind in ERROR_TABLE.values():
        expected = {429: "rate_limit_error"}.get(kind.status, "server_error" if kind.status >= 500 else None)
        assert kind.type == (expected or "invalid_request_error")


def test_a_message_of_ours_is_told_and_one_of_pythons_is_not() -> None:
    ours = translate(relay_errors.EngineStopped("the engine has stopped"))
    assert (ours.kind.status, ours.message) == (503, "the engine has stopped")
    theirs = translate(KeyError("/etc/secret"))
    assert (theirs.kind.code, "secret" in theirs.message) == ("internal_error", False)


def test_an_unlisted_subclass_is_told_as_its_parent() -> None:
    class Special(relay_errors.InvalidRequest): ...

    assert translate(Special("x", param="p")).kind == ERROR_TABLE[relay_errors.InvalidRequest]


def test_busy_answers_say_when_to_come_back() -> None:
    error = relay_errors.TooBusy(waiting=3, retry_after_seconds=7)
    assert error_response(translate(error)).headers["retry-after"] == "7"
    assert "retry-after" in error_response(translate(relay_errors.NotReady())).headers
    assert "retry-after" not in error_response(translate(relay_errors.EngineStopped("x"))).headers


def test_the_frameworks_own_errors_get_a_code() -> None:
    assert translate(HTTPException(404, "Not Found")).kind.code == "unknown_route"
    assert translate(HTTPException(418, "teapot")).kind.status == 418
    assert "unknown_route" in error_codes()
