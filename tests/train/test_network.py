from __future__ import annotations

from distft.train.network import interface_of


def test_the_interface_of_an_address_is_found_and_of_no_other() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None, "an address for documentation, which no machine has"
