"""What another library raised is told in one line of at most 200 characters, and never as nothing."""

from __future__ import annotations

import pickle

import pytest

from repvgg_mm import UserError
from repvgg_mm.errors import UnusableFile, first_line, reason


@pytest.mark.parametrize('error, line, why', [
    (ValueError('bad\nand more'), 'ValueError: bad', 'bad'),
    (RuntimeError('\n  late start\n'), 'RuntimeError:', 'late start'),
    (KeyError('name'), "KeyError: 'name'", "'name'"),
    (TimeoutError(), 'TimeoutError:', 'TimeoutError'),
    (pickle.UnpicklingError('  \n '), 'UnpicklingError:', 'UnpicklingError'),
    (OSError(28, 'No space left on device'), 'OSError: [Errno 28] No space left on device',
     '[Errno 28] No space left on device')])
def test_one_line(error, line, why):
    assert first_line(error).strip() == line and reason(error) == why


def test_a_long_message_is_cut():
    error = ValueError('x' * 1000)
    assert reason(error) == 'x' * 200
    assert first_line(error) == 'ValueError: ' + 'x' * 188


def test_mistakes_of_a_user_are_value_errors():
    assert issubclass(UserError, ValueError) and issubclass(UnusableFile, UserError)


def test_a_name_from_a_file_tells_a_terminal_nothing():
    named = 'the key \x1b]0;title\x07\x9b31m in\ta\nfile é'
    assert str(UserError(named)) == 'the key \\x1b]0;title\\x07\\x9b31m in\ta\nfile é'
