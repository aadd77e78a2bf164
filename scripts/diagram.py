"""The diagram of a worker's life in docs/architecture.md, made from the table in core/worker.py.

Without arguments it writes the document anew; with --check it exits 1 where the document is not up to date.
"""

import sys
from collections import defaultdict
from pathlib import Path

from rbee.core.worker import TRANSITIONS, WorkerState

DOCUMENT = Path(__file__).parent.parent / "docs" / "architecture.md"
BEGIN, END = "<!-- generated: transitions -->\n", "<!-- end -->\n"


def diagram() -> str:
    """Mermaid text: an arrow for each pair of states, with the events that lead along it."""
    arrows: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (state, event), targets in TRANSITIONS.items():
        for target in sorted(targets):
            if target is not state:
                arrows[str(state), str(target)].append(event.__name__)
    order = [str(state) for state in WorkerState]
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {WorkerState.STARTING}"]
    for (before, after), events in sorted(arrows.items(), key=lambda item: [order.index(name) for name in item[0]]):
        lines.append(f"    {before} --> {'[*]' if after == WorkerState.GONE else after}: {', '.join(sorted(events))}")
    return "\n".join([*lines, "```", ""])


def updated(text: str) -> str:
    """*text* with the diagram between the two marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before + begin + diagram() + end + after


def main() -> int:
    text = DOCUMENT.read_text()
    if "--check" in sys.argv:
        return int(text != updated(text))
    DOCUMENT.write_text(updated(text))
    return 0


if __name__ == "__main__":
    sys.exit(main())
