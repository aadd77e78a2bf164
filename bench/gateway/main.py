"""A quick look at one figure: what our gateway costs beside HAProxy.

``json``: requests of 32 clients that ask again at once; ``open``: 1,000 requests a second; ``chunks``: of 64 streams,
each at its own moment; ``heaps``: of all of them at the same moments; ``added``: time to the first byte; ``steps``:
our own code alone, without sockets; ``table``: every peer and every figure, in four minutes.
"""

import argparse
import tempfile
from pathlib import Path

from bench.gateway import price, proxies, rounds, steps
from bench.gateway.proxies import DIRECT, HAPROXY, OURS

REQUESTS = 4000
SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["json", "open", "chunks", "heaps", "added", "steps", "table"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32, help="of json")
    parser.add_argument("--rate", type=float, default=1000, help="requests a second of open")
    parser.add_argument("--with", dest="others", nargs="*", default=[], choices=[*proxies.STARTS], help="these, too")
    chosen = parser.parse_args()
    if chosen.what == "table":
        print_table()
    elif chosen.what == "added":
        print_added(chosen)
    elif chosen.what == "steps":
        print_steps()
    else:
        print_rounds(chosen)


def print_table() -> None:
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder:
        found = price.compare(Path(folder))
    rule = ["---" for _ in price.HEADINGS]
    for line in (price.HEADINGS, rule, *price.lines(found)):
        print(f"| {' | '.join(line)} |")


def print_added(chosen: argparse.Namespace) -> None:
    names = [DIRECT, HAPROXY, OURS, *chosen.others]
    with (
        tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder,
        proxies.standing(Path(folder), names) as found,
        rounds.loader() as pool,
    ):
        for proxy in found.values():
            # So that none of them is measured in its first second.
            rounds.a_request(pool, proxy, REQUESTS)
        for name, (p50, p99, rate) in price.added(
            pool, list(found.values()), rounds.highest_rate(pool, found[HAPROXY])
        ).items():
            print(f"{name}: p50 {p50 * 1000:.2f} ms, p99 {p99 * 1000:.2f} ms at {rate:.0f} requests a second")


def print_steps() -> None:
    for workers in (1, 2):
        request, chunk = steps.steps(workers)
        print(f"{workers} worker(s) of the model: {request:.1f} us of Python a JSON request, {chunk:.2f} us a chunk")


def print_rounds(chosen: argparse.Namespace) -> None:
    names = [HAPROXY, OURS, *chosen.others]
    with (
        tempfile.TemporaryDirectory(prefix="rbee-bench-") as folder,
        proxies.standing(Path(folder), names) as found,
        rounds.loader() as pool,
    ):

        def measure(proxy: proxies.Proxy) -> rounds.Cost:
            if chosen.what == "json":
                return rounds.a_request(pool, proxy, REQUESTS, chosen.connections)
            if chosen.what == "open":
                return rounds.a_request_now_and_then(pool, proxy, SECONDS, chosen.rate)
            return rounds.a_chunk(pool, proxy, rounds.Paced(SECONDS, together=chosen.what == "heaps"))

        taken = []
        for number, costs in rounds.in_turn(list(found.values()), chosen.rounds, measure):
            taken.append(costs)
            line = "   ".join(f"{name} {cost.micros:.1f} us ({cost.rate:.0f}/s)" for name, cost in costs.items())
            print(f"{number}: {line}", flush=True)
        for name in found:
            beside = f", {rounds.median_ratio(taken, name, HAPROXY):.2f} x {HAPROXY}" if HAPROXY in found else ""
            print(f"{name}: {rounds.median_micros(taken, name):.1f} us{beside}")


if __name__ == "__main__":
    main()
