"""The one error type for bad input: what the user sees instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Input, configuration or environment the user can fix.

    The message names the file, row or config key, says what was expected, and gives the remedy. The
    command line prints it without a traceback and exits with code 2.
    """
