"""Mistakes that a user can make, and how what another library raised is told in one line."""

LONGEST_REASON = 200  # characters


class UserError(ValueError):
    """A mistake outside this package. The message says the rule, the values found and the next step;
    the tools print it without a stack trace and exit with code 1."""


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
