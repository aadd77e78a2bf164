"""A model of whole layers is divided wherever that is possible, however tight it is."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.core.claims import Need, Parts
from rbee.core.ledger import Room
from rbee.core.placing import place
from rbee.core.verdicts import Demand


def layers_on(split, layers):
    """llama.cpp's rule: a layer goes to the first device whose share, with all before it, reaches beyond the layer."""
    counts, done, ends = [0] * len(split), 0.0, []
    for share in split:
        done += share
        ends.append(done)
    for layer in range(layers):
        counts[next((at for at, end in enumerate(ends) if layer / layers < end), len(split) - 1)] += 1
    return counts


@given(
    st.lists(st.tuples(st.integers(1, 16), st.floats(0, 1.5)), min_size=2, max_size=6),
    st.integers(50, 1000),
    st.integers(1, 600),
)
@settings(max_examples=300, deadline=None)
def test_a_model_is_divided_wherever_it_can_be(devices, layer, overhead):
    layers = sum(count for count, _ in devices)

    def size(placement, ctx_size):
        return Need(Parts(), tuple(Parts(count * layer + overhead) for count in layers_on(placement.split, layers)))

    rooms = {at: count * layer + overhead + int(spare * layer) for at, (count, spare) in enumerate(devices)}
    placed = place(Demand("m", "cuda", (), 1, size), Room(2**60, rooms), 1)
    assert placed.over_bytes == 0
    assert abs(sum(placed.placement.split) - 1) < 1e-9
    assert min(placed.placement.split) >= 0
