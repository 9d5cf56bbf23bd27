"""Finds dead links in our Markdown: files that are not there, headings that no longer say so. No network."""

import re
import subprocess
import sys
from pathlib import Path

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors that the headings of a file make."""
    headings = _HEADING.findall(_CODE.sub(lambda match: match[0].strip("`"), path.read_text("utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(path: Path) -> list[str]:
    """What is wrong with the links of one file, a line each."""
    wrong = []
    for target in _LINK.findall(_CODE.sub("", path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        if not there.exists():
            wrong.append(f"{path}: {target}: no such file")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            wrong.append(f"{path}: {target}: no such heading")
    return wrong


def main() -> int:
    """Check every Markdown file that git knows."""
    listed = subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True, check=True)  # noqa: S607
    wrong = [line for name in listed.stdout.split() for line in dead_links(Path(name))]
    print("\n".join(wrong) or f"{len(listed.stdout.split())} files, no dead link")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
