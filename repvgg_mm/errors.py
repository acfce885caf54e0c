class UserError(ValueError):
    """A mistake outside this package. The message says the rule, the values found and the next step;
    the tools print it without a stack trace and exit with code 1."""


class UnusableFile(UserError):
    """A UserError about one file of several: work on the others can go on."""


def first_line(error: Exception) -> str:
    """Its type and the first line of its message, at most 200 characters."""
    return f'{type(error).__name__}: {error}'.strip().splitlines()[0][:200]
