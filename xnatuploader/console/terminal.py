"""Whether a person can be asked something in this run, and the asking."""

from __future__ import annotations

import sys


def there() -> bool:
    """Tell whether a person can be asked: standard input and error are both a terminal.

    Git Bash and other MinTTY windows give a native Windows Python pipes, where a prompt for a password
    would not be seen and the program would seem to hang, so they count as none.
    """
    try:
        return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
    except (ValueError, AttributeError):  # closed, or a service without standard streams
        return False


def ask(question: str) -> str:
    """Ask as `input` does, but on standard error: standard output belongs to results. Raises EOFError at its end."""
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        raise EOFError
    return answer.rstrip("\r\n")
