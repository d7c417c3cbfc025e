"""What a user is told when a request is wrong."""


class RequestError(ValueError):
    """The request is wrong. The message is one line: the option, the value, what is allowed. Exit code 2."""
