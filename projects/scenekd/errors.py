"""Errors that a user can cause: one line that names the file or key, what is wrong, and what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line; the command-line tools print it and exit with code 2."""


class BadRecordError(UserError):
    """One image, mask or annotation is unusable; ``DATASETS.ON_ERROR: skip`` leaves it out and counts it."""


def run_cli(main: Callable[[], object], *, debug: bool | None = None) -> None:
    """Run a tool's ``main``; a user's error becomes one line on stderr and exit code 2.

    ``debug`` (default: ``--debug`` on the command line, or the environment variable ``SCENEKD_DEBUG``) shows
    the traceback instead. Ctrl-C ends likewise, in one line.
    """
    if debug is None:
        debug = "--debug" in sys.argv or bool(os.environ.get("SCENEKD_DEBUG"))
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted; where the tool has --resume, it goes on from what is there", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except (UserError, OSError) as error:
        message = _one_line(error)
        if debug or message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2) from None


def first_line(error: BaseException) -> str:
    """The first line of what a foreign error says, or its kind where it says nothing."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _one_line(error: Exception) -> str | None:
    """The message for a user, or None where the error is not one that a user caused."""
    if isinstance(error, UserError):
        return _message(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{error.filename or 'output'}: no space left on the disk; free some or set another OUTPUT_DIR"
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return f"{error.filename}: {error.strerror}" if error.filename else _message(error)
    return None


def _message(error: Exception) -> str:
    text = str(error)
    if "Original Traceback" in text:
        # Torch raises a data worker's error again with its traceback in the text, the message last.
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(text.split())
