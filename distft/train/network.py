"""Which network the workers' exchange goes over, where they are on several nodes.

Enters: the workers of a group, before their process group is made. Leaves: gloo on the interface by which Ray reaches
each node. Surprising choice: gloo alone would take the address that the host's name resolves to, which on many machines
is 127.0.1.1 or 127.0.0.1, where no other node answers. On one node that is just right, so there it is left alone.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915


@dataclass
class Network(TorchConfig):
    """Ray Train's torch configuration, for nodes whose names resolve to themselves alone."""

    @property
    def backend_cls(self) -> type[Any]:
        """What Ray Train starts the workers with."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        if len(set(worker_group.execute(ray.util.get_node_ip_address))) > 1:
            worker_group.execute(bind_gloo)
        super().on_start(worker_group, backend_config)


def bind_gloo() -> None:
    """Has gloo use the interface with this node's address, unless the environment names one."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface with an IPv4 address; None if none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None
