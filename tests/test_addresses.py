"""Addresses: what a recipe may name, and that no key in one is ever shown."""

from __future__ import annotations

import httpx
import pytest

from algorist import addresses

NO_ADDRESS = (
    "",
    "localhost:8000",
    "http://",
    "http://:80",
    "https:///v1",
    "http://h:80o0",
    "http://h:99999",
    "http://h:-1/v1",
    "http://h:0/v1",
    "http://a:b/v1",
    "http://[::1/v1",
    "http://xn--/v1",
    "http://a\n/v1",
    "ftp://h/v1",
    "toy://teacher",
)


@pytest.mark.parametrize("url", NO_ADDRESS)
def test_what_is_no_address_is_shown(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        addresses.check(url)
    assert str(refused.value) == f'url = "{url}" is no address: http://… or https://… was expected.'
    with pytest.raises(ValueError) as refused:
        addresses.check(url, "http://… or a toy")
    assert str(refused.value) == f'url = "{url}" is no address: http://… or a toy was expected.'


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@h/v1",
        "http://secret@h/v1",
        "https://h/v1?key=secret",
        "https://h/v1#secret",
        "http://me:secret@h:80o0/v1",  # no address either, which must not show it
        "me:secret@h",
    ],
)
def test_what_may_hold_a_key_is_not_shown(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        addresses.check(url)
    assert str(refused.value) == (
        "url holds a user, a password or a query. Put the key into the environment variable that key_env names."
    )
    with pytest.raises(ValueError) as refused:
        addresses.check(url, key_place="A_KEY")
    assert str(refused.value) == "url holds a user, a password or a query. Put the key into A_KEY."


@pytest.mark.parametrize(
    "url", ["https://h/v1", "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "HTTP://H", "http://ü.de/v1"]
)
def test_what_is_an_address_is_one_for_the_client_too(url: str) -> None:
    addresses.check(url)
    assert httpx.URL(url).host
