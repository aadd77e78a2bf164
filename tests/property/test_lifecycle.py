"""Any legal story of one worker, told by hypothesis; the clock jumps, so a year costs nothing."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rbee.core import events as ev
from rbee.core.exits import Exit, ExitReason
from rbee.core.worker import TRANSITIONS, Worker, WorkerSpec, WorkerState, advance

S = WorkerState
DECISIONS = st.sampled_from(
    [ev.GiveUp("No more tries."), ev.RestartAfter(1.0, "attempt 1 of 2"), ev.OpenCircuit(60.0, "Its circuit is open.")]
)
ANSWERS = st.sampled_from(
    [ev.BackoffEnded(), ev.RestartRefused("RAM is short.", 5.0), ev.CircuitOpened("Its circuit is open.", 60.0)]
)
URL = "http://127.0.0.1:8081"


class Lifecycle(RuleBasedStateMachine):
    """The shell is modelled beside it: which processes run, which timers are set. Only what the shell could send
    in that situation is drawn, legal events alone, with whole seconds between them."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.worker = Worker(WorkerSpec(worker_id="w-1", model_ref="synthetic:x"))
        self.spawning, self.running = True, False
        self.draining = self.grace = self.backoff = False
        self.killed = self.told = False
        self.history = [S.STARTING]

    @property
    def processes(self):
        return self.running + self.spawning

    def take(self, event, seconds):
        self.now += seconds
        before = self.worker
        self.worker, commands = advance(before, event, self.now)
        assert self.worker.state in TRANSITIONS[before.state, type(event)]
        self.history.append(self.worker.state)
        for command in commands:
            match command:
                case ev.Spawn():
                    assert self.processes == 0, "never two processes of one worker"
                    self.spawning, self.killed, self.told = True, False, False
                case ev.WaitForDrain():
                    self.draining = True
                case ev.Terminate():
                    self.told = self.grace = True
                case ev.AwaitExit():
                    self.grace = True
                case ev.Kill():
                    self.killed = True
                case ev.WaitForBackoff():
                    assert not self.running
                    self.backoff = True

    seconds = st.integers(0, 20)

    @rule(seconds=seconds)
    def time_passes(self, seconds):
        self.now += seconds

    @precondition(lambda self: self.spawning)
    @rule(seconds=seconds)
    def the_fork_succeeds(self, seconds):
        self.spawning, self.running = False, True
        self.take(ev.Spawned(7), seconds)

    @precondition(lambda self: self.spawning and self.worker.state in (S.STARTING, S.STOPPING))
    @rule(seconds=seconds, decision=DECISIONS)
    def the_fork_fails(self, seconds, decision):
        self.spawning = self.grace = False
        self.take(ev.SpawnFailed("no memory", decision), seconds)

    @precondition(lambda self: self.running)
    @rule(seconds=seconds, decision=DECISIONS, code=st.integers(0, 2))
    def the_process_ends(self, seconds, decision, code):
        self.running = self.draining = self.grace = False
        self.take(ev.Exited(Exit(ExitReason.CRASHED, code=code), decision), seconds)

    @precondition(lambda self: self.running)
    @rule(seconds=seconds, data=st.data())
    def the_worker_calls_back(self, seconds, data):
        said = [ev.AnnouncedLoading(URL, 7, 8, 4), ev.AnnouncedReady(URL, 7, 8, 4), ev.AnnouncedFailed("bad file")]
        legal = [event for event in said if (self.worker.state, type(event)) in TRANSITIONS]
        if legal:
            self.take(data.draw(st.sampled_from(legal)), seconds)

    @precondition(lambda self: self.running and (self.worker.state, ev.Adopted) in TRANSITIONS)
    @rule(seconds=seconds, serving=st.booleans())
    def the_worker_is_taken_over(self, seconds, serving):
        self.take(ev.Adopted(URL, 8, 4, serving=serving), seconds)

    @precondition(lambda self: self.running and (self.worker.state, ev.EngineExited) in TRANSITIONS)
    @rule(seconds=seconds)
    def the_engine_ends(self, seconds):
        self.take(ev.EngineExited(), seconds)

    @precondition(lambda self: self.worker.is_watched)
    @rule(seconds=seconds)
    def it_goes_stale(self, seconds):
        self.take(ev.WentStale(60.0), seconds)

    @precondition(lambda self: (self.worker.state, ev.Condemned) in TRANSITIONS)
    @rule(seconds=seconds)
    def it_is_condemned(self, seconds):
        self.take(ev.Condemned(ExitReason.UNHEALTHY, "no answer"), seconds)

    @precondition(lambda self: self.draining and self.worker.state is S.DRAINING)
    @rule(seconds=seconds)
    def the_drain_ends(self, seconds):
        self.draining = False
        self.take(ev.DrainEnded(), seconds)

    @precondition(lambda self: self.grace and self.worker.state is S.STOPPING)
    @rule(seconds=seconds)
    def the_grace_ends(self, seconds):
        self.grace = False
        self.take(ev.GraceEnded(), seconds)

    @precondition(lambda self: self.backoff and self.worker.state in (S.BACKOFF, S.FAILED))
    @rule(seconds=seconds, answer=ANSWERS)
    def the_backoff_ends(self, seconds, answer):
        self.backoff = False
        self.take(answer, seconds)

    @precondition(lambda self: self.worker.state is not S.GONE)
    @rule(seconds=seconds, force=st.booleans())
    def somebody_deletes_it(self, seconds, force):
        self.backoff = False
        self.take(ev.EndRequested(force=force), seconds)

    @precondition(lambda self: self.worker.state is not S.GONE and not self.worker.forget)
    @rule(seconds=seconds)
    def somebody_restarts_it(self, seconds):
        self.backoff = False
        self.take(ev.RestartRequested(), seconds)

    @invariant()
    def a_process_exists_only_in_the_states_that_say_so(self):
        if self.worker.state in (S.BACKOFF, S.FAILED, S.GONE):
            assert self.processes == 0
            assert self.worker.pid is None or self.worker.state is S.GONE

    @invariant()
    def one_that_is_stopping_was_told_killed_or_is_being_waited_for(self):
        if self.worker.state is S.STOPPING and self.running:
            assert self.told or self.killed or self.grace

    @invariant()
    def one_that_waits_to_be_started_again_has_a_timer(self):
        if self.worker.state is S.BACKOFF:
            assert self.backoff

    @invariant()
    def it_was_ready_only_if_this_life_has_been(self):
        if self.worker.state in (S.STARTING, S.LOADING, S.BACKOFF):
            assert self.worker.ready_since is None

    @invariant()
    def each_incarnation_is_one_spawn(self):
        assert self.worker.incarnation == self.worker.restart_count + 1

    @invariant()
    def every_state_says_what_goes_on(self):
        assert self.worker.message

    @invariant()
    def a_deleted_one_never_comes_back(self):
        if self.worker.forget:
            assert self.worker.state in (S.DRAINING, S.STOPPING, S.GONE)


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
