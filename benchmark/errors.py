"""What a user is told when something is wrong."""


class RequestError(ValueError):
    """The request is wrong. The message is one line: the option, the value, what is allowed. Exit code 2."""


def printable(text: str) -> str:
    """`text` with every character escaped that a terminal would act on: file names and values are somebody else's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_one_line(error: BaseException) -> str:
    """Type and first line of the message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
