"""The addresses of this machine: which host is this one, and over which interface another is reached. Sends nothing."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct

import msgspec

# Of <linux/sockios.h>.
_SIOCGIFADDR = 0x8915
_SIOCGIFNETMASK = 0x891B
_DISCARD_PORT = 9


class Interface(msgspec.Struct, frozen=True):
    """A network interface of this machine, with its IPv4 address there and its network, such as `10.1.0.0/16`."""

    name: str
    address: str
    network: str


def resolved(name: str) -> list[str]:
    """The numeric addresses of a host, none if it is not known here."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_this_host(name: str) -> bool:
    """Whether the name, or an address of that name, is one of this machine's."""
    if name in (socket.gethostname(), "localhost"):
        return True
    return any(_is_own(address) for address in resolved(name))


def source_address(name: str) -> str | None:
    """This machine's own address on the way to a host; None if there is no way, or the host is not known here."""
    for address in resolved(name):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        # A datagram socket is connected without a packet; the kernel only chooses the way.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _DISCARD_PORT))
            return str(probe.getsockname()[0])
    return None


def interface_of(own_address: str) -> Interface | None:
    """The interface that has this IPv4 address of this machine; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                if _asked(any_socket, name, _SIOCGIFADDR) == own_address:
                    mask = _asked(any_socket, name, _SIOCGIFNETMASK)
                    network = ipaddress.IPv4Network(f"{own_address}/{mask}", strict=False)
                    return Interface(name, own_address, str(network))
    return None


def interface_towards(name: str) -> Interface | None:
    """The interface over which this machine reaches a host; None if there is no way, or none over IPv4."""
    own_address = source_address(name)
    return interface_of(own_address) if own_address is not None else None


def _is_own(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def _asked(any_socket: socket.socket, interface: str, request: int) -> str:
    """What the kernel says about an interface's IPv4 address. Raises OSError if it has none."""
    answer = fcntl.ioctl(any_socket, request, struct.pack("256s", interface.encode()[:15]))
    return socket.inet_ntoa(answer[20:24])
