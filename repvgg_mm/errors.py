"""Mistakes that a user can make, and how what another library raised is told in one line."""

import re

LONGEST_REASON = 200  # characters


CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f-\x9f]')  # but tabs and ends of lines


class UserError(ValueError):
    """A mistake outside this package. The message says the rule, the values found and the next step;
    the tools print it without a stack trace and exit with code 1.

    Names from files stand in it, so control characters, with which a terminal can be told what to do, are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(CONTROL.sub(lambda found: repr(found[0])[1:-1], message))


class UnusableFile(UserError):
    """A UserError about one file of several: work on the others can go on."""


def first_line(error: BaseException) -> str:
    """Its type and the first line of its message, at most 200 characters."""
    text = f'{type(error).__name__}: {error}'
    return text.strip().splitlines()[0][:LONGEST_REASON]


def reason(error: BaseException) -> str:
    """The first line of its message, at most 200 characters; its type where the message is empty."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return lines[0][:LONGEST_REASON]
