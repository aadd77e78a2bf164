"""What came of each fault, as a table and as JSON."""

import statistics
from dataclasses import dataclass, field

HEADS = ("fault", "injected", "recovered median s", "worst s", "lost, with an error", "failed otherwise", "violations")


@dataclass
class Row:
    name: str
    seconds: list[float] = field(default_factory=list)
    injected: int = 0
    answered: int = 0
    lost: int = 0
    failed: int = 0
    violations: int = 0

    def cells(self) -> tuple[str, ...]:
        median = f"{statistics.median(self.seconds):.2f}" if self.seconds else "-"
        worst = f"{max(self.seconds):.2f}" if self.seconds else "-"
        counts = (self.lost, self.failed, self.violations)
        return (self.name, str(self.injected), median, worst, *map(str, counts))


def markdown(rows: list[Row]) -> str:
    total = Row("all", [s for row in rows for s in row.seconds])
    for row in rows:
        total.injected += row.injected
        total.lost += row.lost
        total.failed += row.failed
        total.violations += row.violations
    lines = [HEADS, tuple("---" if i == 0 else "---:" for i in range(len(HEADS)))]
    lines += [row.cells() for row in [*rows, total]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
