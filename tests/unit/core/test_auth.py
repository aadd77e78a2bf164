import pytest

from rbee.core import auth
from rbee.core.auth import Action, AuthPolicy, Principal, Role
from rbee.core.errors import Forbidden, Unauthorized, UnsafeBind

SECRET = b"s" * 32
ADMIN_KEY, CLIENT_KEY = "an-admin-key-of-length", "a-client-key-of-length"
OPEN = AuthPolicy(digests={}, worker_secret=SECRET)
CLOSED = AuthPolicy(
    digests={
        auth.digest(ADMIN_KEY): Principal(Role.ADMIN, "api_token"),
        auth.digest(CLIENT_KEY): Principal(Role.CLIENT, "web"),
        auth.digest("a-metrics-key-of-length"): Principal(Role.METRICS, "prometheus"),
    },
    worker_secret=SECRET,
)
TOKEN = auth.worker_token(SECRET, "w-1", 2)


def test_each_key_is_the_principal_that_the_settings_name():
    assert auth.resolve(CLOSED, ADMIN_KEY) == Principal(Role.ADMIN, "api_token")
    assert auth.resolve(CLOSED, CLIENT_KEY) == Principal(Role.CLIENT, "web")
    assert auth.resolve(CLOSED, None) == Principal(Role.ANONYMOUS)


@pytest.mark.parametrize("key", ["", "x", ADMIN_KEY + "x", ADMIN_KEY[:-1], "\udcff", "ключ"])
def test_a_key_that_nobody_knows_is_refused(key):
    with pytest.raises(Unauthorized) as caught:
        auth.resolve(CLOSED, key)
    assert not key or key not in caught.value.message


@pytest.mark.parametrize("key", [None, "", "sk-whatever-a-client-library-sends"])
def test_without_any_key_everybody_is_an_admin_who_is_not_trusted_with_workers(key):
    principal = auth.resolve(OPEN, key)
    assert (principal.role, principal.trusted) == (Role.ADMIN, False)
    auth.require(principal, Action.CONTROL)
    auth.require_voice_of(principal, "by-hand", external=True)
    with pytest.raises(Forbidden):
        auth.require_voice_of(principal, "w-1", external=False)


@pytest.mark.parametrize("policy", [OPEN, CLOSED], ids=["open", "closed"])
def test_a_worker_token_is_checked_without_a_database(policy):
    principal = auth.resolve(policy, TOKEN)
    assert principal == Principal(Role.WORKER, "w-1", 2)
    auth.require_voice_of(principal, "w-1", external=False)
    for action in (Action.CONTROL, Action.INFER, Action.SCRAPE):
        with pytest.raises(Forbidden):
            auth.require(principal, action)


@pytest.mark.parametrize(
    "forged",
    [
        auth.worker_token(b"another secret", "w-1", 2),
        TOKEN.replace(".2.", ".3."),
        TOKEN.replace("w-1", "w-2"),
        TOKEN[:-1],
        TOKEN + "0",
        "rbee-worker.",
        "rbee-worker.x.y.z",
        "rbee-worker.²." + "0" * 64 + ".w-1",
        "rbee-worker." + "9" * 5000 + ".0.w-1",
        "rbee-worker.1." + "0" * 64 + ".\udcff",
    ],
)
@pytest.mark.parametrize("policy", [OPEN, CLOSED], ids=["open", "closed"])
def test_a_forged_worker_token_is_nobody(policy, forged):
    with pytest.raises(Unauthorized):
        auth.resolve(policy, forged)


def test_only_its_own_token_or_an_admin_speaks_for_a_worker():
    other = auth.resolve(CLOSED, auth.worker_token(SECRET, "w-2", 1))
    with pytest.raises(Forbidden, match="w-1"):
        auth.require_voice_of(other, "w-1", external=False)
    auth.require_voice_of(auth.resolve(CLOSED, ADMIN_KEY), "w-1", external=False)
    with pytest.raises(Forbidden):
        auth.require_voice_of(auth.resolve(CLOSED, CLIENT_KEY), "w-1", external=False)
    with pytest.raises(Unauthorized):
        auth.require_voice_of(Principal(Role.ANONYMOUS), "w-1", external=True)


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.ADMIN, set(Action)),
        (Role.CLIENT, {Action.INFER}),
        (Role.METRICS, {Action.SCRAPE}),
        (Role.WORKER, {Action.ANNOUNCE}),
        (Role.ANONYMOUS, set()),
    ],
)
def test_what_each_role_may_do(role, allowed):
    for action in Action:
        if action in allowed:
            auth.require(Principal(role), action)
        else:
            with pytest.raises(Unauthorized if role is Role.ANONYMOUS else Forbidden):
                auth.require(Principal(role), action)


def test_a_secret_shows_nowhere():
    assert "ssss" not in repr(OPEN)
    assert auth.engine_key(SECRET, "w-1", 1) != auth.engine_key(SECRET, "w-1", 2)
    assert auth.engine_key(SECRET, "w-1", 1) not in auth.worker_token(SECRET, "w-1", 1)


def test_a_bind_that_others_can_reach_needs_a_token_of_sixteen_characters():
    auth.check_bind("127.0.0.1", is_loopback=True, tokens=[], keys_required=False)
    auth.check_bind("0.0.0.0", is_loopback=False, tokens=["x" * 16], keys_required=True)
    with pytest.raises(UnsafeBind, match="RBEE_API_TOKEN"):
        auth.check_bind("0.0.0.0", is_loopback=False, tokens=[], keys_required=False)
    with pytest.raises(UnsafeBind, match="15 characters") as caught:
        auth.check_bind("127.0.0.1", is_loopback=True, tokens=["y" * 15], keys_required=True)
    assert "y" * 15 not in caught.value.message


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "key"),
    [
        (None, None, None),
        ("Bearer a", None, "a"),
        ("bEARER   a ", "b", "a"),
        (None, "b", "b"),
        ("Basic a", "b", "b"),
        ("Bearer", "b", "b"),
        ("Bearer  ", "b", "b"),
        ("Bearer", None, None),
        ("Bearerx a", None, None),
    ],
)
def test_key_is_the_bearer_token_else_the_api_key(authorization, x_api_key, key):
    assert auth.presented_key(authorization, x_api_key) == key
