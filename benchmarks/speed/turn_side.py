"""`penchant_side.py` of a checkout, which waits for its turn before every step: python turn_side.py CHECKOUT TASK OUT

A line on stdin is one turn; the answer on stdout says that the step is over.
"""

from __future__ import annotations

import sys
from pathlib import Path

TURN = "turn"


def main() -> None:
    checkout = Path(sys.argv.pop(1))
    # The driver reads stdout; whatever else the command prints goes to the errors.
    answers, sys.stdout = sys.stdout, sys.stderr
    # Python puts the folder of this file first; the checkout's own modules are wanted.
    sys.path[0] = str(checkout / "src")
    sys.path[:0] = [str(checkout / "benchmarks" / "speed"), str(checkout / "benchmarks")]

    import measuring
    import penchant_side

    start_of_step = measuring.Recorder._mark

    def wait_and_mark(recorder: measuring.Recorder) -> None:
        print(TURN, file=answers, flush=True)
        sys.stdin.readline()
        start_of_step(recorder)

    measuring.Recorder._mark = wait_and_mark  # type: ignore[method-assign]
    penchant_side.main()


if __name__ == "__main__":
    main()
