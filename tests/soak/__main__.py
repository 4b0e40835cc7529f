"""``make soak MINUTES=30 [SEED=n]``: random sessions with faults; ends by itself, or after the round when Ctrl-C came.

Exit status 1 if a restore point was not what the guest had at its instant, or if a session failed for no reason.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import signal
import sys
import time
import traceback

from tests.soak.drawing import draw, undisturbed
from tests.soak.faults import fault_points
from tests.soak.scene import Scene
from tests.soak.tally import Tally
from understudy.lab.lab import Lab

#: A soak ends early rather than fill the disk that it runs on.
LEAST_FREE_BYTES = 4 << 30


def main() -> int:
    """Run; the exit status."""
    options = _options()
    seed = options.seed if options.seed is not None else secrets.randbelow(1_000_000)
    print(f"soak: seed {seed}, {options.minutes:g} minutes", flush=True)
    # Blocked, so that no tool in the middle of a round gets it either; it is looked for between rounds.
    # A shell starts background jobs with it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    started, tally = time.monotonic(), Tally()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)

    with Lab.open() as lab:
        place = lab.directory / "soak"
        (place / "tmp").mkdir(parents=True)
        (place / "site").mkdir()
        place.chmod(0o755)
        os.environ["TMPDIR"] = str(place / "tmp")
        scene = Scene(lab, place, tally, say)
        try:
            _rounds(scene, random.Random(seed), started + options.minutes * 60, options.rounds)
            scene.check_all()
        except Exception:  # noqa: BLE001 - the counts so far are worth more than the end of the story
            tally.problems.append(f"the soak itself: {traceback.format_exc()}")
    for line in tally.lines():
        print(line)
    return 0 if tally.good else 1


def _rounds(scene: Scene, dice: random.Random, deadline: float, most: int) -> None:
    points = fault_points()
    for number in range(most):
        if time.monotonic() >= deadline or signal.SIGINT in signal.sigpending():
            return
        if scene.free_bytes() < LEAST_FREE_BYTES:
            print("the disk is nearly full: the soak ends early")
            return
        first = number < len(scene.jobs)
        scene.play(undisturbed(number) if first else draw(dice, len(scene.jobs), points))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long rounds are begun")
    parser.add_argument("--rounds", type=int, default=1 << 30, help="end after so many at the latest")
    parser.add_argument("--seed", type=int, help="of all that is drawn; printed if it is not given")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
