"""Answer a file of prompts, one per line: python examples/answers.py examples/prompts.txt [http://localhost:8787]

Without an address the engine runs in this process. Stop it and start it again: nothing is asked twice.
"""

import hashlib
import sys
from pathlib import Path

from tramontane import TramontaneError, TramontaneSync


def main(file: str, *url: str) -> None:
    prompts = [line for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    name = hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]
    with TramontaneSync(*url) as t:
        answers = t.map(prompts, idempotency_key=name, on_error="return")
        for prompt, answer in zip(prompts, answers, strict=True):
            said = f"({answer.code}) {answer}" if isinstance(answer, TramontaneError) else answer.content
            print(f"{prompt}\n  {said}\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
