"""Requests to servers: retried, not too often, and never blind to a server that has gone."""

import random
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from xtuner_wulewule.errors import SettingsError

LONGEST_PAUSE = 60.0  # seconds
FAILURES_IN_A_ROW = 5


class Failed(Exception):
    """A request failed, or its reply makes no sense; another try may help.

    Args:
        message (str): what happened, without anything secret in it.
        pause (float, optional): seconds that the server asks to wait.
    """

    def __init__(self, message, pause=None):
        super().__init__(message)
        self.pause = pause


class Unreachable(Failed):
    """No connection to the server."""


class Refused(Exception):
    """The server answered that it will not answer; another try makes no difference."""


class Calls:
    """Makes requests one after the other.

    Args:
        retries (int): further tries after a failure.
        per_minute (float, optional): requests a minute at most, tries included.
    """

    def __init__(self, retries, per_minute=None):
        if retries < 0:
            raise SettingsError(f"--retries {retries}: at least 0")
        if per_minute is not None and not 0 < per_minute < float("inf"):
            raise SettingsError(f"--requests-per-minute {per_minute}: give a positive number")
        self.retries = retries
        self.gap = 60 / per_minute if per_minute else 0.0
        self.next = 0.0

    def __call__(self, request):
        """Return what `request()` returns; raise its `Refused`, or the last `Failed` when every try failed."""
        for attempt in range(self.retries + 1):
            time.sleep(max(0.0, self.next - time.monotonic()))
            self.next = time.monotonic() + self.gap
            try:
                return request()
            except Failed as error:
                if attempt == self.retries:
                    raise
                pause = 0.5 * 2**attempt * random.uniform(0.75, 1.25) if error.pause is None else error.pause
                time.sleep(min(pause, LONGEST_PAUSE))


def retry_after(value):
    """Return the seconds (float | None) that a Retry-After header asks for; it has a number or a date."""
    try:
        return max(0.0, float(value))
    except (TypeError, ValueError):
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def check_address(address, option):
    """Return the address of a server without a trailing slash (str); raise SettingsError where it is none, or has a secret in it."""
    try:
        parts = urlsplit(address)
        parts.port  # noqa: B018  (raises where it is not a number)
    except ValueError:
        parts = urlsplit("")
    if parts.username or parts.query:
        raise SettingsError(f"{option}: no user, password or key belongs in the address; keys are read from the environment")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{option} {address}: give an address such as http://127.0.0.1:23333")
    return address.rstrip("/")


def is_local(address):
    """Return whether an address is of this machine (bool); it must not be asked through a proxy."""
    host = urlsplit(address).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def ask_each(part, items, ask, calls, advance, server):
    """Ask for each item and write its rows, in order.

    What failed is noted only when a later item succeeds or all are done, so that a server that has gone does not use up the items.

    Args:
        part (PartFile): where the rows go.
        items (list[tuple[str, str, object]]): key, name and contents of each.
        ask (callable): given `calls` and the contents, returns (rows, note).
        calls (Calls): makes the requests.
        advance (callable): told of each item.
        server (str): option and address, for the message.

    Raises:
        SettingsError: the server cannot be reached, or five items in a row failed.
    """
    failed = []
    for key, name, contents in items:
        if not failed and part.skip(key):
            advance()
            continue
        try:
            rows, note = ask(calls, contents)
        except Unreachable as error:
            raise SettingsError(f"{server}: {error}; start the server, then give the same command again to go on") from None
        if note and note.get("failed"):
            failed.append((key, rows, note))
            if len(failed) == FAILURES_IN_A_ROW:
                reason = f"{name}: {note['reason']}"
                raise SettingsError(
                    f"{server}: {len(failed)} rows in a row failed, the last was {reason}; give the same command again to go on"
                )
        else:
            for one in failed:
                part.add(*one)
            failed = []
            part.add(key, rows, note)
        advance()
    for one in failed:
        part.add(*one)
