from rbee.gateway import crowd


def test_all_that_clients_and_workers_may_take_is_within_the_limit():
    for descriptors in (100, 1024, 65536):
        for workers in (0, 3, 10):
            clients = crowd.capacity(descriptors, workers)
            taken = clients * crowd.FOR_EACH_CLIENT + workers * crowd.FOR_EACH_WORKER
            assert descriptors - 3 < taken + crowd.RESERVED <= descriptors


def test_a_few_clients_are_let_in_however_low_the_limit_is():
    assert crowd.capacity(20, 50) == crowd.FEWEST
