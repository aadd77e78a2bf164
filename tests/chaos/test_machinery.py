"""The runner's own judgement: each invariant sees what it is there for, and nothing else."""

import os
import random
from dataclasses import replace
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import pytest

from tests.chaos import invariants, table
from tests.chaos.catalog import Fault
from tests.chaos.clients import Outcome, Wish
from tests.chaos.invariants import Judgement, View, broken, judge_requests, judge_story
from tests.chaos.lane import Lane, Ledger, seed_of
from tests.chaos.main import FAULTS, chosen
from tests.chaos.stage import PORTS_A_STAGE, Settled, free_ports
from tests.chaos.story import Story

ME = os.getpid()
MODEL = "synthetic:a"
WORKER = {
    "state": "idle",
    "message": "Ready.",
    "incarnation": 2,
    "pid": ME,
    "engine_pid": ME,
    "in_flight": 0,
    "external": False,
}
FINE = View(
    hive_pid=ME,
    runner_pid=ME,
    workers={"w-1": WORKER},
    residents=("w-1",),
    processes={ME: ("w-1", 2)},
    listeners={9000: [ME]},
    folders={"w-1"},
    rows={"w-1": 2},
    in_flight=0,
    queued=0,
    illegal_events=0,
    descriptors=30,
    threads=5,
    first_descriptors=20,
    first_threads=4,
    told_states={"w-1": "ready", "w-0": "gone"},
    claims={"w-1": 2**20},
    reserved=2**19,
)
DISK = "disk full for logs and database"
NOBODY = 2**22 + 1
"""Above the largest pid that Linux gives."""


def test_a_view_in_which_all_is_well_breaks_nothing():
    assert broken(FINE) == []


@pytest.mark.parametrize(
    ("view", "invariant"),
    [
        (replace(FINE, residents=("w-1", "w-2")), "every_resident_serves"),
        (replace(FINE, processes={ME: ("w-9", 1)}, listeners={}), "every_process_belongs_to_a_listed_worker"),
        (replace(FINE, processes={ME: ("w-1", 1)}), "every_process_belongs_to_a_listed_worker"),
        (replace(FINE, workers={"w-1": {**WORKER, "pid": NOBODY}}), "every_listed_worker_lives"),
        (replace(FINE, workers={"w-1": {**WORKER, "engine_pid": None}}), "every_listed_worker_lives"),
        (replace(FINE, listeners={9000: []}), "every_port_has_an_owner"),
        (replace(FINE, listeners={9000: [NOBODY]}), "every_port_has_an_owner"),
        (replace(FINE, folders={"w-1", "w-0"}), "every_folder_has_an_owner"),
        (replace(FINE, rows={}), "every_row_has_a_worker_and_every_worker_a_row"),
        (replace(FINE, rows={"w-1": 1}), "every_row_has_a_worker_and_every_worker_a_row"),
        (replace(FINE, rows={"w-1": 2, "w-0": 1}), "every_row_has_a_worker_and_every_worker_a_row"),
        (replace(FINE, in_flight=1), "nothing_is_in_flight"),
        (replace(FINE, queued=1), "nothing_is_in_flight"),
        (replace(FINE, workers={"w-1": {**WORKER, "in_flight": 1}}), "nothing_is_in_flight"),
        (replace(FINE, illegal_events=1), "no_event_was_illegal"),
        (replace(FINE, descriptors=200), "the_hive_does_not_grow"),
        (replace(FINE, threads=200), "the_hive_does_not_grow"),
        (replace(FINE, told_states={"w-1": "draining"}), "the_event_stream_tells_the_listed_states"),
        (replace(FINE, told_states={"w-0": "ready"}), "the_event_stream_tells_the_listed_states"),
        (replace(FINE, claims={}), "every_worker_of_the_hive_has_a_claim_and_nobody_else"),
        (replace(FINE, claims={**FINE.claims, "w-0": 1}), "every_worker_of_the_hive_has_a_claim_and_nobody_else"),
    ],
)
def test_what_is_wrong_is_named_by_its_invariant(view, invariant):
    assert [line.partition(":")[0] for line in broken(view)] == [invariant]


def test_what_is_reserved_for_nobody_is_named():
    empty = replace(
        FINE, workers={}, residents=(), processes={}, listeners={}, folders=set(), rows={}, told_states={}, claims={}
    )
    assert [line.partition(":")[0] for line in broken(empty)] == [
        "every_worker_of_the_hive_has_a_claim_and_nobody_else"
    ]
    assert broken(replace(empty, reserved=0)) == []


def test_a_process_of_a_worker_that_has_none_is_named():
    failed = replace(FINE, workers={"w-1": {**WORKER, "state": "failed"}}, residents=(), told_states={})
    assert [line.partition(":")[0] for line in broken(failed)] == ["every_process_belongs_to_a_listed_worker"]


def test_a_worker_on_its_way_is_named():
    loading = replace(FINE, workers={"w-1": {**WORKER, "state": "loading"}}, residents=(), told_states={})
    assert [line.partition(":")[0] for line in broken(loading)] == ["nobody_is_on_the_way"]


@pytest.fixture
def story():
    told = Story("127.0.0.1", 1)
    told.models["w-1"] = MODEL
    return told


def event(number, event="Spawned", before="starting", after="starting", worker_id="w-1"):
    return {
        "number": number,
        "at": "2026-01-01T00:00:00Z",
        "worker_id": worker_id,
        "model_ref": MODEL,
        "incarnation": 1,
        "event": event,
        "before": before,
        "after": after,
        "message": "",
        "exit_reason": None,
    }


def test_a_life_by_the_table_is_no_complaint(story):
    story.take(event(1))
    story.take(event(2, "AnnouncedLoading", "starting", "loading"))
    story.take(event(3, "AnnouncedReady", "loading", "ready"))
    story.take(event(4, "Spawned", "starting", "starting", "w-2"))
    assert judge_story(story) == []


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (event(3), "event 3 came after event 1"),
        (event(2, "AnnouncedReady", "loading", "ready"), "the worker was starting before"),
        (event(2, "DrainEnded", "starting", "stopping"), "not in the table"),
        (event(2, "AnnouncedLoading", "starting", "ready"), "not in the table"),
        (event(2, "Invented", "starting", "ready"), "not in the table"),
    ],
)
def test_a_story_that_makes_no_sense_is_told_once(story, second, says):
    story.take(event(1))
    story.take(second)
    assert [says in complaint for complaint in judge_story(story)] == [True]
    assert judge_story(story) == []


def test_the_next_hive_begins_its_story_anew(story):
    story.take(event(1))
    story.new_hive()
    story.take(event(1, "DrainEnded", "draining", "stopping"))
    assert judge_story(story) == []


def outcome(kind, *, stream=False, worker_id="w-1", started=10.0, ended=11.0, model=MODEL):
    return Outcome(Wish(model, stream), started, ended, kind, worker_id=worker_id)


@pytest.mark.parametrize("kind", ["refused", "broken_off", "cut", "stuck", "wrong"])
def test_a_request_that_failed_without_any_cause_is_a_failure(story, kind):
    judged = judge_requests([outcome(kind)], story, [])
    assert (judged.answered, judged.lost, len(judged.failed)) == (0, [], 1)


@pytest.mark.parametrize(
    ("kind", "is_lost"), [("refused", 1), ("broken_off", 1), ("cut", 1), ("stuck", 0), ("wrong", 0)]
)
def test_a_request_in_a_gap_between_two_hives_may_be_lost_but_not_stuck(story, kind, is_lost):
    judged = judge_requests([outcome(kind)], story, [(9.0, 10.5)])
    assert (len(judged.lost), len(judged.failed)) == (is_lost, 1 - is_lost)


def test_a_gap_that_was_over_explains_nothing(story):
    assert judge_requests([outcome("cut")], story, [(8.0, 9.0)]).failed


@pytest.mark.parametrize(
    ("kind", "stream", "is_lost"), [("broken_off", True, 1), ("refused", False, 1), ("cut", False, 1), ("cut", True, 0)]
)
def test_a_request_on_a_worker_that_ended_is_lost_and_a_stream_says_so(story, kind, stream, is_lost):
    story.take(event(1, "AnnouncedReady", "loading", "ready"))
    now = story.steps[0].seen_at
    judged = judge_requests([outcome(kind, stream=stream, started=now - 1, ended=now + 1)], story, [])
    assert (len(judged.lost), len(judged.failed)) == (is_lost, 1 - is_lost)


def test_an_answer_by_a_worker_of_another_model_is_a_failure(story):
    assert judge_requests([outcome("answered", model="synthetic:b")], story, []).failed
    assert not judge_requests([outcome("answered")], story, []).failed


def test_the_same_seed_gives_the_same_faults_and_a_deck_has_all_of_them():
    faults = chosen(None, {"wall clock", "small disk"})
    assert faults == list(FAULTS.values())

    def first(seed):
        many = sum(fault.weight for fault in faults)
        lane = Lane("1", seed, many, Path(), None, Ledger(faults, print))
        return [fault.name for fault in islice(lane.deck(), many)]

    assert first(7) == first(7)
    assert first(7) != first(8)
    assert set(first(7)) == set(FAULTS)


def test_the_first_of_several_lanes_has_the_seed_of_the_run_and_each_other_one_of_its_own():
    assert [seed_of(7, number) for number in range(3)] == [7, seed_of(7, 1), seed_of(7, 2)]
    assert len({seed_of(seed, number) for seed in (7, 8) for number in range(3)}) == 6


def test_stages_side_by_side_never_share_a_port():
    rng = random.Random(1)
    for parts in (1, 2, 3):
        for _ in range(20):
            firsts = sorted(free_ports(rng, part, parts) for part in range(parts))
            assert all(after - before >= PORTS_A_STAGE for before, after in pairwise(firsts))


class Rehearsal:
    """A stage on which nothing runs: what a fault draws from its chance is all that is seen of it."""

    def __init__(self, rng, drawn):
        self.rng, self.drawn = rng, drawn
        self.story = Story("127.0.0.1", 1)
        self.injected_at = 0.0

    def open(self):
        self.rng.random()
        return self

    def wait_busy(self):
        pass

    def settle(self):
        return Settled(0.1, Judgement(1, [], []), [])

    def close(self):
        return []

    def abandon(self):
        pass

    remove = abandon


def play(folder, seed, restless=False):
    """The faults of one lane, each with what it drew; *restless*: each draws once more than it used."""
    drawn = []

    def inject(name, stage):
        drawn.append((name, stage.rng.random()))
        if restless:
            stage.rng.random()

    faults = [Fault(name, "", partial(inject, name), 2, frozenset()) for name in "abc"]
    ledger = Ledger(faults, lambda line: None)
    lane = Lane("1", seed, 60, folder, lambda _, rng: Rehearsal(rng, drawn), ledger)
    lane.run()
    assert lane.error is None
    assert sum(row.injected for row in ledger.rows.values()) == 60
    return drawn


def test_what_a_fault_draws_hangs_on_the_seed_and_its_number_alone(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    first = play(folders[0], 7)
    assert play(folders[1], 7, restless=True) == first
    assert play(folders[2], 8) != first


def test_a_mistake_of_the_runner_ends_its_lane_and_is_not_taken_for_a_fault_survived(tmp_path):
    def inject(stage):
        raise TypeError("no such fault")

    ledger = Ledger([Fault("a", "", inject, 1, frozenset())], lambda line: None)
    lane = Lane("1", 7, 3, tmp_path, lambda _, rng: Rehearsal(rng, []), ledger)
    lane.run()
    assert isinstance(lane.error, TypeError)


def test_each_fault_is_injected_once_by_a_test_of_its_own():
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*_faults.py"))
    jumps = {f"wall clock jumps an hour {way}" for way in ("ahead", "back")}
    untested = {name for name in FAULTS if f'survives("{name}")' not in source} - jumps - {DISK}
    assert untested == set()


def test_the_table_adds_up():
    rows = [table.Row("one", [0.5, 1.5], 2, 10, 1, 0, 0), table.Row("two", [], 1, 0, 0, 1, 2)]
    lines = table.markdown(rows).splitlines()
    assert lines[2] == "| one | 2 | 1.00 | 1.50 | 1 | 0 | 0 |"
    assert lines[3] == "| two | 1 | - | - | 0 | 1 | 2 |"
    assert lines[4] == "| all | 3 | 1.00 | 1.50 | 1 | 1 | 2 |"


def test_every_invariant_has_a_view_that_breaks_it():
    source = Path(__file__).read_text()
    assert [i.__name__ for i in invariants.STANDING if f'"{i.__name__}"' not in source] == []
