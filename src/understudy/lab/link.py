"""A cable between the two lab hosts: private addresses, a rate that can change, and a cut that nobody is told of.

It is a veth pair with one end in the network namespace of each host, so it ends with either host, however that ends,
and the machine's own network never sees an interface, an address or a route of it.
"""

from __future__ import annotations

from understudy.lab.commands import find_program, run
from understudy.lab.hosts import LabHost

ALPHA_ADDRESS = "10.213.77.1"
BETA_ADDRESS = "10.213.77.2"
_PREFIX_LENGTH = 30
# Both ends have this name; each has a network namespace for itself.
_INTERFACE = "lablink"
_ALPHA_MAC = "02:00:00:00:77:01"
_BETA_MAC = "02:00:00:00:77:02"
_NOBODY_MAC = "02:00:00:00:77:ff"

# Arguments: interface, address with prefix length. IPv6 goes before the link is up, so that no address is ever made.
_SETUP = """set -e
ipv6=/proc/sys/net/ipv6/conf/$1/disable_ipv6
if [ -e "$ipv6" ]; then echo 1 >"$ipv6"; fi
ip address add "$2" dev "$1"
ip link set "$1" up
"""

# A burst below what the kernel hands down at once (64 KiB) only makes it split packets; one far above it would let
# short transfers pass at full speed.
_BURST_S = 0.005
_BURST_MIN = 16 << 10
# What waits longer than this before the bottleneck is dropped, as a router with a small buffer does.
_QUEUE_MS = 50


class LabLink:
    """The cable between two running lab hosts: no rate limit at first; gone when either host is closed.

    :ivar alpha_address: the IPv4 address of the first host on it.
    :ivar beta_address: the IPv4 address of the second host on it.
    """

    def __init__(self, alpha: LabHost, beta: LabHost) -> None:
        """Lay the cable; both hosts reach each other when this returns."""
        self.alpha_address = ALPHA_ADDRESS
        self.beta_address = BETA_ADDRESS
        self._hosts = (alpha, beta)
        self._limited = False
        _make_pair(alpha, beta)
        for host, address in ((alpha, ALPHA_ADDRESS), (beta, BETA_ADDRESS)):
            host.namespaces.run(["sh", "-c", _SETUP, "sh", _INTERFACE, f"{address}/{_PREFIX_LENGTH}"])
        self.restore()

    def set_rate(self, bits_per_s: int | None) -> None:
        """Limit each direction by itself to this many bits per second, None for no limit; also while data flows."""
        if bits_per_s is None:
            if self._limited:
                self._queue("del")
            self._limited = False
            return
        burst = max(_BURST_MIN, int(bits_per_s / 8 * _BURST_S))
        limits = ["rate", f"{bits_per_s}bit", "burst", f"{burst}b", "latency", f"{_QUEUE_MS}ms"]
        self._queue("replace", "tbf", *limits)
        self._limited = True

    def _queue(self, verb: str, *what: str) -> None:
        for host in self._hosts:
            host.namespaces.run(["tc", "qdisc", verb, "dev", _INTERFACE, "root", *what])

    def cut(self) -> None:
        """Lose all that is sent from now on, in both directions, without a word to either host.

        Connections stay as they are and their data is sent again and again by TCP; new ones get no answer. What
        already waits before a rate limit may still arrive.
        """
        # With the interface down, connect() would fail at once with "network is unreachable": true for a host whose own
        # cable is pulled, not for a line that breaks on the way. A frame to another station is just dropped.
        self._aim(_NOBODY_MAC, _NOBODY_MAC)

    def restore(self) -> None:
        """Let data through again. TCP notices when it next sends again: after up to as long as the cut has lasted."""
        self._aim(_ALPHA_MAC, _BETA_MAC)

    def _aim(self, alpha_mac: str, beta_mac: str) -> None:
        """Tell each host behind which hardware address it finds the other."""
        alpha, beta = self._hosts
        for host, address, mac in ((alpha, BETA_ADDRESS, beta_mac), (beta, ALPHA_ADDRESS, alpha_mac)):
            neighbour = [address, "lladdr", mac, "dev", _INTERFACE, "nud", "permanent"]
            host.namespaces.run(["ip", "neighbour", "replace", *neighbour])


def _make_pair(alpha: LabHost, beta: LabHost) -> None:
    # Only the network namespace is entered, because the kernel looks up the peer's pid among those of the caller. Both
    # ends are made where they belong in one call: there is no instant at which a kill could leave one elsewhere.
    enter = ["nsenter", "--target", str(alpha.namespaces.holder.pid), "--net"]
    ends = [_INTERFACE, "address", _ALPHA_MAC, "type", "veth", "peer", "name", _INTERFACE, "address", _BETA_MAC]
    run([*enter, find_program("ip"), "link", "add", *ends, "netns", str(beta.namespaces.holder.pid)])
