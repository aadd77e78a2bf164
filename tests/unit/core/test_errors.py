import inspect

import pytest

from rbee.core import errors


def leaves(base):
    children = base.__subclasses__()
    return {leaf for child in children for leaf in leaves(child)} if children else {base}


REQUEST_LEAVES = sorted(leaves(errors.RequestError), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", REQUEST_LEAVES, ids=lambda cls: cls.__name__)
def test_every_leaf_has_a_status_a_code_and_a_line_in_the_tree(cls):
    assert 400 <= errors.STATUS[cls] < 600
    assert cls.code != errors.RbeeError.code
    assert f" {cls.__name__}" in inspect.getdoc(errors)


def test_no_two_errors_share_a_code():
    codes = [cls.code for cls in leaves(errors.RbeeError)]
    assert len(codes) == len(set(codes))


def test_what_has_no_row_is_our_own_fault():
    assert errors.status_of(errors.RbeeError("?")) == 500
    assert errors.status_of(errors.WorkerNotFound("?")) == 404


def test_the_body_has_the_shape_that_the_api_promises():
    body = errors.AliasInUse("The alias is in use.", worker_id="w-1").body("r-1")
    assert body == {
        "error": {"code": "alias_in_use", "message": "The alias is in use.", "details": {"worker_id": "w-1"}},
        "request_id": "r-1",
    }
