"""The end of a command here, for a reason that its user can mend."""


class Stop(Exception):
    """The end, with an exit code and one sentence for the user."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
