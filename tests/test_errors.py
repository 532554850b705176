"""Every error survives pickling, says all three parts, and has its place in the tree."""

from __future__ import annotations

import inspect
import pickle

import pytest

from distft import errors

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.DistftError)]


@pytest.mark.parametrize("error", CLASSES)
def test_an_error_survives_pickling(error):
    raised = error("There are 3 rows", "at least 5", "Bring more.")
    copy = pickle.loads(pickle.dumps(raised))
    assert type(copy) is error
    assert str(copy) == str(raised)
    assert (copy.what, copy.expected, copy.remedy) == ("There are 3 rows", "at least 5", "Bring more.")


def test_an_error_reads_as_a_paragraph():
    error = errors.DataError("There are 3 rows", "at least 5", "Bring more.")
    assert str(error) == "There are 3 rows. Expected at least 5. Bring more."


@pytest.mark.parametrize("error", CLASSES)
def test_the_exit_code_follows_the_tree(error):
    user = issubclass(error, errors.UserError) or error is errors.LeakError
    assert error.exit_code == (errors.EXIT_USER if user else errors.EXIT_FAILED)


def test_the_tree_is_drawn_completely():
    for error in CLASSES:
        assert error.__name__ in (errors.__doc__ or "")
