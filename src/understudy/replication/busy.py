"""Who was busy: shares of the parts of a disk transfer, from the waiting times that both ends measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping

PARTS = ("source", "source_proxy", "network", "target_proxy", "target")


def shares(near: Mapping[str, float], far: Mapping[str, float]) -> dict[str, float]:
    """The share of each part in the time of the transfer; they add up to 1, or there are none.

    The threads of the source side spend their time waiting for the source, working, or waiting for what is behind them
    (``network`` in ``near``). What is behind them is the target side, as far as its threads were busy, and else the
    network: they had nothing to do (``network`` in ``far``) although something was on its way.

    :param near: seconds of the source side: ``source``, ``source_proxy``, ``network``; ``target`` if it writes itself.
    :param far: seconds of the target side: ``target_proxy``, ``target``, ``network``; empty if there is none.
    """
    spent = sum(near.get(part, 0.0) for part in PARTS)
    if spent <= 0:
        return {}
    found = {part: near.get(part, 0.0) / spent for part in PARTS}
    behind = found["network"]
    total = sum(far.get(part, 0.0) for part in ("target_proxy", "target", "network"))
    if total > 0:
        busy = {part: far.get(part, 0.0) / total for part in ("target_proxy", "target")}
        all_busy = sum(busy.values())
        theirs = min(behind, all_busy)
        for part, share in busy.items():
            found[part] += theirs * share / all_busy if all_busy else 0.0
        found["network"] = behind - theirs
    return {part: round(share, 4) for part, share in found.items()}


def bottleneck(found: Mapping[str, float]) -> str:
    """The part with the largest share, or empty."""
    return max(found, key=lambda part: found[part]) if found else ""
