"""Penchant's losses against TRL 1.16's on the same log-probs, where TRL computes the same formula.

    python benchmarks/trl_losses.py

Uses the environment of benchmarks/environments.py, made the first time. Exits with 1 where a loss that should agree
differs by 1e-5 relative or more.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from environments import HERE, TRL, trl_python

from penchant.objectives import (
    CDPO,
    DPO,
    IPO,
    KTO,
    ORPO,
    Groups,
    Hinge,
    LengthNormalizedDPO,
    RobustDPO,
    SimPO,
)

TOLERANCE = 1e-5
CASES, PAIRS = 8, 16
METHODS = {
    "dpo": DPO(0.1),
    "cdpo": CDPO(0.1, 0.2),
    "robust_dpo": RobustDPO(0.1, 0.2),
    "ipo": IPO(0.1),
    "hinge": Hinge(0.1),
    "length_normalized_dpo": LengthNormalizedDPO(5.0),
    "simpo": SimPO(2.0, 0.5),
    "orpo": ORPO(0.1),
    "kto": KTO(0.1, 1.0, 1.5),
}
DIFFER = {
    "cdpo": "TRL's sigmoid loss does not read label_smoothing: what it computes is DPO (and equals ours with e = 0)",
}


def make_case(seed: int) -> dict[str, list]:
    torch.manual_seed(seed)
    lengths = {name: torch.randint(1, 60, (PAIRS,)).tolist() for name in ("n_chosen", "n_rejected")}
    values = {}
    for name, n in (("chosen", "n_chosen"), ("rejected", "n_rejected")):
        values[name] = [-float(x) * k for x, k in zip(torch.rand(PAIRS) * 3 + 0.05, lengths[n], strict=True)]
        values[f"ref_{name}"] = [p + float(d) for p, d in zip(values[name], torch.randn(PAIRS) * 10, strict=True)]
    values["mismatched"] = (-torch.rand(PAIRS) * 100).tolist()
    values["ref_mismatched"] = [x - float(d) for x, d in zip(values["mismatched"], torch.rand(PAIRS) * 5, strict=True)]
    return {**lengths, **values}


def ours(name: str, case: dict[str, list]) -> float:
    """The objective on the case; ORPO's likelihood term, which TRL takes from elsewhere, is left out on both sides."""
    policy = torch.tensor([case["chosen"], case["rejected"], case["mismatched"]]).T
    reference = torch.tensor([case["ref_chosen"], case["ref_rejected"], case["ref_mismatched"]]).T[None]
    mask = torch.tensor([True, True, False]).expand(PAIRS, 3)
    better = torch.zeros(PAIRS, 3, 3, dtype=torch.bool)
    better[:, 0, 1] = True
    tokens = torch.tensor([case["n_chosen"], case["n_rejected"], [1] * PAIRS]).T
    groups = Groups(
        mask=mask,
        tokens=tokens,
        better=better,
        scores=torch.zeros(PAIRS, 3),
        scored=torch.zeros(PAIRS, 3, dtype=torch.bool),
        labels=torch.tensor([1, -1, 0]).expand(PAIRS, 3),
        weights=torch.ones(PAIRS),
        mismatched=~mask,
    )
    loss = METHODS[name].evaluate(policy, reference, groups, {}).loss
    value = float(loss.total / loss.count)
    if name == "orpo":
        value += sum(p / n for p, n in zip(case["chosen"], case["n_chosen"], strict=True)) / PAIRS
    return value


def main() -> int:
    cases = [make_case(seed) for seed in range(CASES)]
    with tempfile.TemporaryDirectory() as scratch:
        cases_file, losses_file = Path(scratch) / "cases.json", Path(scratch) / "losses.json"
        cases_file.write_text(json.dumps(cases))
        subprocess.run([trl_python(), HERE / "peers" / "trl_losses.py", cases_file, losses_file], check=True)
        theirs = json.loads(losses_file.read_text())
    print(f"{CASES} cases of {PAIRS} pairs, float32; TRL {TRL}, torch {torch.__version__}, {platform.machine()}, CPU")
    failed = False
    for name in METHODS:
        pairs = [(ours(name, case), losses[name]) for case, losses in zip(cases, theirs, strict=True)]
        worst = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)
        if name in DIFFER:
            print(f"{name}: differs by up to {worst:.1%}: {DIFFER[name]}")
            difference = max(abs(ours("dpo", case) - losses[name]) for case, losses in zip(cases, theirs, strict=True))
            failed |= not math.isclose(difference, 0, abs_tol=TOLERANCE)
        else:
            agree = worst < TOLERANCE
            failed |= not agree
            note = " (odds-ratio term)" if name == "orpo" else ""
            print(f"{name}: {'agree' if agree else 'DIFFER'}, largest relative difference {worst:.1e}{note}")
    print(
        "ORPO's likelihood term: TRL takes the mean over prompt and response tokens of the batch, "
        "we over the response's."
    )
    print(
        "KTO: same z from the same mismatched log-probs; TRL borrows the next response of the micro-batch, we a random"
    )
    print("one of the data, and our z is of the whole optimizer batch.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
