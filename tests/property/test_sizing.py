"""Any model with any settings: more never needs less, nothing gets lost between devices, and it takes no time."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rbee.core.claims import Need, Parts, Peak, Placement
from rbee.core.engine_args import CACHE_TYPES
from rbee.core.limits import MAX_CTX_SIZE, MAX_SLOTS
from rbee.core.model_header import ModelFacts, ModelHeader
from rbee.core.sizing import Sizing, estimate, need_of
from rbee.core.worker import WorkerSpec

CPU = Placement()
SIZES = st.integers(0, 2**40)


@st.composite
def headers(draw, fewest=1):
    count = draw(st.integers(fewest, 24))
    each = {"min_size": count, "max_size": count}
    is_tied = draw(st.booleans())
    return ModelHeader(
        architecture="any",
        embedding_length=draw(st.integers(1, 16_384)),
        feed_forward_length=draw(st.integers(0, 65_536)),
        vocabulary=draw(st.integers(0, 300_000)),
        context_length=draw(st.integers(0, MAX_CTX_SIZE)),
        heads=tuple(draw(st.lists(st.integers(0, 128), **each))),
        kv_heads=tuple(draw(st.lists(st.integers(0, 128), **each))),
        key_length=draw(st.integers(0, 576)),
        value_length=draw(st.integers(0, 576)),
        input_bytes=draw(SIZES),
        layer_bytes=tuple(draw(st.lists(SIZES, **each))),
        output_bytes=draw(SIZES),
        is_tied=is_tied,
        tied_bytes=draw(SIZES) if is_tied else 0,
        sliding_window=draw(st.sampled_from([0, 1, 512, 4096])),
        windowed=tuple(draw(st.lists(st.booleans(), **each))),
        state_bytes=tuple(draw(st.lists(st.sampled_from([0, 0, 2**20]), **each))),
        tied_type=draw(st.sampled_from(["Q4_K", "Q8_0"])) if is_tied else "",
        type_bytes=tuple((kind, draw(SIZES)) for kind in draw(st.sets(st.sampled_from(["Q4_K", "Q8_0"])))),
    )


@st.composite
def sizings(draw):
    return Sizing(
        ctx_size=draw(st.integers(1, MAX_CTX_SIZE)),
        slots=draw(st.integers(1, MAX_SLOTS)),
        cache_type_k=draw(st.sampled_from(CACHE_TYPES)),
        cache_type_v=draw(st.sampled_from(CACHE_TYPES)),
        flash_attention=draw(st.booleans()),
        batch=draw(st.sampled_from([512, 2048, 8192])),
        gpu_layers=draw(st.sampled_from([None, 0, 1, 5, 9999])),
        all_outputs=draw(st.booleans()),
        is_mapped=draw(st.booleans()),
    )


@st.composite
def placements(draw):
    shares = draw(st.lists(st.integers(0, 10), max_size=8).filter(lambda found: not found or sum(found)))
    return Placement("cuda", tuple(range(len(shares))), tuple(share / sum(shares) for share in shares))


def figures(need: Need):
    return [need.ram.total_bytes, *(parts.total_bytes for parts in need.vram)]


def numbers(parts: Parts):
    return [getattr(parts, name) for name in Parts.__slots__]


def no_less(more: Need, less: Need) -> bool:
    return all(a >= b for a, b in zip(figures(more), figures(less), strict=True))


@given(headers(), sizings(), placements(), st.integers(0, 8192))
def test_a_longer_context_needs_no_less_of_anything(header, sizing, placement, tokens):
    longer = replace(sizing, ctx_size=sizing.ctx_size + tokens)
    assert no_less(estimate(header, longer, placement), estimate(header, sizing, placement))


@given(headers(), sizings(), placements(), st.integers(0, 64))
def test_more_slots_need_no_less_of_anything(header, sizing, placement, slots):
    wider = replace(sizing, slots=sizing.slots + slots)
    assert no_less(estimate(header, wider, placement), estimate(header, sizing, placement))


@given(headers(fewest=2), sizings())
def test_more_layers_need_no_less(header, sizing):
    lists = ("heads", "kv_heads", "layer_bytes", "windowed", "state_bytes")
    fewer = replace(header, **{name: getattr(header, name)[:-1] for name in lists})
    assert no_less(estimate(header, sizing, CPU), estimate(fewer, sizing, CPU))


@given(headers(), sizings(), placements())
def test_every_layer_and_its_cache_is_counted_once_wherever_it_lies(header, sizing, placement):
    header = replace(header, tied_type="")
    found, alone = estimate(header, sizing, placement), estimate(header, replace(sizing, is_mapped=False), CPU)
    everywhere = (found.ram, *found.vram)
    assert sum(parts.kv_cache_bytes for parts in everywhere) == alone.ram.kv_cache_bytes
    assert sum(parts.weights_bytes for parts in everywhere) >= alone.ram.weights_bytes
    unmapped = estimate(header, replace(sizing, is_mapped=False), placement)
    copy = sum(parts.weights_bytes for parts in (unmapped.ram, *unmapped.vram)) - alone.ram.weights_bytes
    assert copy in (0, header.tied_bytes)


@given(headers(), sizings(), placements())
def test_nothing_is_ever_negative_or_broken(header, sizing, placement):
    found = estimate(header, sizing, placement)
    assert len(found.vram) == len(placement.devices)
    for parts in (found.ram, *found.vram):
        assert all(type(number) is int and number >= 0 for number in numbers(parts))


@given(headers(), placements(), st.lists(st.integers(0, 2**45), max_size=8), st.integers(0, 2**45))
def test_a_peak_raises_a_figure_to_itself_and_lowers_none(header, placement, seen, ram):
    spec, facts = WorkerSpec("w", "hf:a/b"), ModelFacts(2**30, header)
    plain = need_of(spec, facts, 0, placement, None)
    found = need_of(spec, facts, 0, placement, Peak(ram, tuple(seen)))
    assert no_less(found, plain)
    assert found.ram.total_bytes == max(ram, plain.ram.total_bytes)
    if len(seen) == len(placement.devices):
        measured = [max(a, b) for a, b in zip(seen, figures(plain)[1:], strict=True)]
        assert figures(found)[1:] == measured


@given(headers(), st.sampled_from(["command", "synthetic", "llama-cpp"]), placements(), SIZES)
def test_what_is_known_by_its_size_alone_is_divided_without_a_loss(header, engine, placement, size):
    found = need_of(WorkerSpec("w", "x", engine=engine), ModelFacts(size), 0, placement, None)
    assert len(found.vram) == len(placement.devices)
    if placement.devices and engine != "synthetic":
        assert sum(figures(found)[1:]) >= size * 6 // 5
