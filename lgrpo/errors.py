"""The one exception for mistakes that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad user input. The message says what is wrong, where, and how to mend it; the CLI prints it as one line and exits with 2."""
