from __future__ import annotations

import socket
from pathlib import Path

import pytest

from distft.errors import ArtefactError, UsageError
from distft.serve import server
from distft.serve.arrangement import Options
from distft.storage import Storage
from tests.serve.bundles import write_bundle


def test_a_port_in_use_is_said_before_anything_starts(bundle: Storage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"Port {port} of 127.0.0.1 .*--port"):
            server.start(bundle, "127.0.0.1", port)
        with pytest.raises(UsageError, match=str(port)), server.serving(bundle.uri, port=port):
            pass


def test_a_name_that_also_has_an_address_of_ipv6_is_fine() -> None:
    server.check_port("localhost", server.free_port("localhost"))


@pytest.mark.parametrize("host", ["::1", "::"])
def test_addresses_over_which_the_proxy_does_not_reach_its_replicas_are_refused(host: str) -> None:
    with pytest.raises(UsageError, match=r"IPv6.*--host 127\.0\.0\.1"):
        server.check_port(host, 8000)


@pytest.mark.parametrize(("host", "port"), [("203.0.113.7", 8000), ("127.0.0.1", 70_000), ("no such host", 8000)])
def test_addresses_where_nothing_can_listen(host: str, port: int) -> None:
    with pytest.raises(UsageError, match=host):
        server.check_port(host, port)


def test_a_damaged_bundle_is_named_before_anything_starts(tmp_path: Path) -> None:
    bundle = write_bundle(Storage(tmp_path))
    weights = bundle.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        server.start(bundle, "127.0.0.1", server.free_port("127.0.0.1"))


@pytest.mark.parametrize("options", [Options(deny="/nowhere/deny"), Options(keys="/nowhere/keys")])
def test_files_that_cannot_be_read_are_named_before_ray_starts(bundle: Storage, options: Options) -> None:
    port, steps = server.free_port("127.0.0.1"), list[str]()
    starting = server.serving(bundle.uri, port=port, progress=lambda step, *_: steps.append(step), options=options)
    with pytest.raises(UsageError, match="/nowhere"), starting:
        pass
    assert not steps, "the first is told when Ray is up"


def test_without_keys_only_this_machine_is_answered(bundle: Storage) -> None:
    with pytest.raises(UsageError, match=r"Without API keys.*0\.0\.0\.0.*--keys FILE"):
        server.start(bundle, "0.0.0.0", server.free_port("0.0.0.0"))


def test_two_proxies_share_neither_files_nor_ports(tmp_path: Path) -> None:
    with server.reserved_ports() as ours, server.reserved_ports() as theirs:
        assert len(ours) == len(theirs) == server.NUM_PORTS and not set(ours) & set(theirs)
        first = server.proxy_environment(tmp_path / "a", ours)
        second = server.proxy_environment(tmp_path / "b", theirs)
    assert first.keys() == second.keys() and not set(first.values()) & set(second.values())
    assert len(set(first.values())) == len(first)
    assert {int(value) for name, value in first.items() if name.endswith("_PORT")} <= set(ours)
    with server.reserved_ports() as again:
        assert again == ours, "given back when the service ended"
