"""The table that people read: what was done, what was counted, what was expected, and whether it holds."""

from chaos.checks import Finding, examples, summary
from chaos.evidence import Evidence

_WIDTHS = 52, 44, 30


def report(evidence: Evidence, findings: list[Finding], *, seed: int) -> str:
    """Plain text, about 100 columns."""
    lines = [
        f"Chaos of {evidence.seconds:.0f} s, and {evidence.settled:.0f} s until all was settled; seed {seed}",
        "",
        "What was done",
    ]
    lines += [f"  {number:5}  {kind}" for kind, number in sorted(evidence.strikes.done.items())]
    lines += [f"      -  {kind}: skipped, {reason}" for kind, reason in evidence.strikes.skipped.items()]
    lines += ["", _row("What must be true", "counted", "expected")]
    for finding in findings:
        lines.append(_row(finding.claim, finding.counted, finding.expected, "ok" if finding.holds else "WRONG"))
        lines += [f"        {example}" for example in examples(finding)]
    good, number = summary(findings)
    verdict = "everything holds" if good == number else f"{number - good} of {number} do NOT hold"
    return "\n".join([*lines, "", f"Verdict: {verdict}"])


def _row(*cells: str) -> str:
    widths = (*_WIDTHS, 0)
    return ("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False))).rstrip()
