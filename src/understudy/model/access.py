"""How a host is reached: its address, who logs in there, and the vendor's disk library, where disks need one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DiskLibrary:
    """The vendor's disk library on the hosts of proxies: never shipped, the user has put it there.

    :ivar directory: of the unpacked kit; empty if there is none.
    :ivar plugin: of nbdkit, which loads it: a name, or the absolute path of its file.
    """

    directory: str = ""
    plugin: str = "vddk"


NO_LIBRARY = DiskLibrary()


@dataclass(frozen=True)
class HostAccess:
    """Everything that is needed to connect to a platform.

    :ivar user, password: empty where the address alone is enough.
    :ivar thumbprint: SHA-256 of the server's certificate, hexadecimal with colons, that an administrator has confirmed.
        Empty: the certificate must be for the server's name, of an authority that this machine trusts.
    """

    uri: str
    user: str = ""
    password: str = field(default="", repr=False)
    thumbprint: str = ""
    library: DiskLibrary = NO_LIBRARY


@dataclass(frozen=True)
class ServerCertificate:
    """Who a platform's server says that it is, before anybody logs in.

    :ivar not_before, not_after: ISO 8601 in UTC.
    :ivar thumbprint: SHA-256, as in :class:`HostAccess`.
    :ivar trusted: it is for the server's name, of an authority that this machine trusts.
    """

    subject: str
    issuer: str
    not_before: str
    not_after: str
    thumbprint: str
    trusted: bool


@dataclass(frozen=True)
class LibraryLogin:
    """How the vendor's disk library logs in to a server.

    :ivar thumbprint: SHA-1 of the server's certificate, hexadecimal with colons: what the library compares.
    """

    server: str
    user: str
    password: str = field(repr=False)
    thumbprint: str
    library: DiskLibrary
