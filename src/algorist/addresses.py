"""Addresses of servers, as a recipe names them: one check for the teacher, the judge and whoever labels.

It stands so low that the verifier may use it too. There is no torch here.
"""

from __future__ import annotations

import httpx


def check(
    url: str,
    expected: str = "http://… or https://…",
    key_place: str = "the environment variable that key_env names",
) -> None:
    """Raise ValueError where a url is no address of a server, or one that must not stand in a recipe.

    Args:
        url        up to and including /v1
        expected   what would be an address, for the message
        key_place  where a key belongs, for the message
    """
    if set("@?#") & set(url):  # before all else, and not shown: recipes and messages travel
        raise ValueError(f"url holds a user, a password or a query. Put the key into {key_place}.")
    if not _is_address(url):
        raise ValueError(f'url = "{url}" is no address: {expected} was expected.')


def _is_address(url: str) -> bool:
    """Whether the client that will be used can read it, and finds a host in it."""
    try:
        parsed = httpx.URL(url)
        port = parsed.port is None or 0 < parsed.port < 2**16
        return parsed.scheme in ("http", "https") and bool(parsed.host) and port
    except (httpx.InvalidURL, ValueError):  # the latter of a host in half an international spelling
        return False
