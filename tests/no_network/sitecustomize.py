"""On the PYTHONPATH of a process, this cuts it off from every address but this machine's own, and
says on standard error what it asked for.
"""

import errno
import ipaddress
import socket
import sys

MARK = "OUTSIDE ADDRESS:"
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo


def _refuse_outside(host: object) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    try:
        own = (
            name in (None, "", "localhost")
            or ipaddress.ip_address(str(name).partition("%")[0]).is_loopback
            or ipaddress.ip_address(str(name)).is_unspecified
        )
    except ValueError:
        own = False
    if not own:
        print(MARK, name, file=sys.stderr, flush=True)
        raise OSError(errno.ENETUNREACH, f"Network is unreachable: {name}")


def connect(self: socket.socket, address: object) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _refuse_outside(address[0])
    _connect(self, address)


def getaddrinfo(host: object, *args: object, **options: object) -> list:
    _refuse_outside(host)
    return _getaddrinfo(host, *args, **options)


socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
