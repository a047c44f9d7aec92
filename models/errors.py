"""The one exception that means "you can fix this": every command prints it as a sentence and exits with 2."""


class UserError(Exception):
    """Raise with one sentence that says what is wrong and what to do next; bugs keep their own exceptions."""
