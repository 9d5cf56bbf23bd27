"""`python -m chaos [--seconds 300] [--seed N]`: run, report, and fail if anything was found."""

import argparse
import asyncio
import random
import sys

from chaos.checks import judge
from chaos.recovery import measure
from chaos.report import report
from chaos.run import Plan, run


def main() -> int:
    words = argparse.ArgumentParser(prog="chaos")
    words.add_argument("--seconds", type=float, default=300.0, help="of faults; what is needed to settle comes on top")
    words.add_argument("--seed", type=int, default=random.randrange(2**32), help="of an earlier run, to repeat it")
    words.add_argument("--workers", type=int, default=4)
    words.add_argument("--kills", type=int, default=4, help="of leaders, to see how soon others go on; 0: none")
    given = words.parse_args()
    print(f"seed {given.seed}", flush=True)
    evidence = asyncio.run(run(Plan(seed=given.seed, seconds=given.seconds, workers=given.workers)))
    findings = judge(evidence)
    if given.kills:
        findings += asyncio.run(measure(given.kills)).findings()
    print(report(evidence, findings, seed=given.seed))
    return 0 if all(finding.holds for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
