"""The schema, row by row: what passes, what is refused with a reason, and that nothing else can happen."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import PoisonError
from dispatcher.model import Attribute, Message, Priority
from dispatcher.policy.decode import GENERATION, decode, request_id_of
from dispatcher.policy.envelope import rejected

TOPIC = "arn:aws:sns:us-east-1:123456789012:inference-results"
LEAST = {"request_id": "req-1", "model_name": "gpt-l-7b", "input_data_url": "s3://bucket/inputs/req-1.json"}
THE_BRIEF_S_SAMPLE = """
{"request_id": "req-12345-uuid", "model_name": "gpt-l-7b", "input_data_url": "s3://bucket/inputs/req-12345.json",
 "callback_sns_topic": "arn:aws:sns:us-east-1:xxx:inference-results", "priority": "high", "timestamp": "2025-12-02T10:23:00Z",
 "metadata": {"user_id": "user123", "session_id": "session456"}}
"""  # noqa: E501  byte for byte as it was given


def decoded(**fields: Any) -> Message:
    return decode(json.dumps(LEAST | fields), {})


def reason(body: str) -> str:
    with pytest.raises(PoisonError) as poison:
        decode(body, {})
    return poison.value.reason


def with_raw(field: str) -> str:
    """A body that is complete, with one more field spelled as given."""
    return json.dumps(LEAST)[:-1] + "," + field + "}"


def test_the_brief_s_sample_passes() -> None:
    message = decode(THE_BRIEF_S_SAMPLE, {})
    assert (message.request_id, message.model_name, message.priority) == ("req-12345-uuid", "gpt-l-7b", Priority.HIGH)
    assert message.generation == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "x"),
        ("request_id", "x" * 256),
        ("request_id", "заявка-七 🙂"),
        ("model_name", "m"),
        ("input_data_url", "s3://bucket/key"),
        ("input_data_url", "s3://bucket/deep/er/key with spaces?versionId=1"),
        ("input_data_url", "https://host/path?X-Amz-Signature=abc"),
        ("input_data_url", "https://host:8443"),
        ("callback_sns_topic", TOPIC),
        ("callback_sns_topic", TOPIC + ".fifo"),
        ("callback_sns_topic", "arn:aws-cn:sns:cn-north-1:123456789012:t"),
        ("callback_sns_topic", "arn:aws-us-gov:sns:us-gov-west-1:123456789012:t"),
        ("priority", "high"),
        ("priority", "normal"),
        ("priority", "low"),
        ("timestamp", "2025-12-02T10:23:00Z"),
        ("timestamp", "2025-12-02t10:23:00.123456789+05:30"),
        ("timestamp", "2016-12-31T23:59:60Z"),  # RFC 3339: leap seconds are allowed
        ("timestamp", "1985-04-12 23:20:50.52-00:00"),
        ("metadata", {}),
        ("metadata", {"user_id": 5, "nested": [{"deep": None}], "text": "\ud800"}),
        ("anything", [1, None, {"else": True}]),
    ],
)
def test_what_the_contract_allows_passes(field: str, value: Any) -> None:
    decoded(**{field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("request_id", ["", "x" * 257, "a\nb", "a\x00b", "a\u200bb", "\ud800", 5, None, True, ["x"], {"x": 1}]),
        ("model_name", ["", 5, None, [], "\ud800"]),
        (
            "input_data_url",
            [
                "", "bucket/key", "s3://", "s3://bucket", "s3://bucket/", "s3:///key", "http://host/key", "https://",
                "https:///path", "https://[::1", "ftp://host/key", "file:///etc/passwd", "s3://b/a\nb", 7, None, [],
                " s3://bucket/key", "https://ho st/key", "https://:443/key", "https://user@/key",
            ],
        ),
        (
            "callback_sns_topic",
            [
                "", "topic", "arn:aws:sqs:us-east-1:123456789012:q", "arn:aws:sns:us-east-1::t", TOPIC + ":sub",
                TOPIC + "\n", " " + TOPIC, "arn:aws:sns:us-east-1:123456789012:", 5,
            ],
        ),
        ("priority", ["HIGH", "", "urgent", 1, True, [], {}]),
        (
            "timestamp",
            [
                "", "2025-12-02", "2025-12-02T10:23:00", "2025-12-02T10:23Z", "2025-13-02T10:23:00Z",
                "2025-02-30T10:23:00Z", "2025-12-02T24:00:00Z", "2025-12-02T10:60:00Z", "2025-12-02T10:23:61Z",
                "2025-12-02T10:23:00+24:00", "2025-12-02T10:23:00+01:60", "2025-12-02T10:23:00,5Z",
                "2025-12-02T10:23:00.٢Z", "20251202T102300Z", "now", 1764670980, 1.5,
            ],
        ),
        ("metadata", ["", "x", 5, [], True]),
    ],
)  # fmt: skip
def test_what_the_contract_forbids_is_refused_and_the_reason_names_the_field(field: str, values: list[Any]) -> None:
    passed = []
    for value in values:
        try:
            decoded(**{field: value})
        except PoisonError as poison:
            assert field in poison.reason
        else:
            passed.append(value)
    assert passed == []


@pytest.mark.parametrize("field", LEAST)
def test_what_is_required_and_missing_is_named(field: str) -> None:
    assert field in reason(json.dumps({name: value for name, value in LEAST.items() if name != field}))


def test_every_fault_of_a_body_is_in_its_reason() -> None:
    said = reason('{"request_id": "", "priority": "urgent", "metadata": []}')
    assert all(field in said for field in ("request_id", "model_name", "input_data_url", "priority", "metadata"))


def test_priority_is_normal_unless_said_otherwise() -> None:
    assert decoded().priority is Priority.NORMAL


@pytest.mark.parametrize("body", ["", " ", "null", "1", '"text"', "[]", "[{}]", "{", "{'a': 1}", '{"a": 1,}', "nope"])
def test_a_body_that_is_no_json_object_is_refused(body: str) -> None:
    assert "JSON" in reason(body)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_python_s_own_constants_are_not_json(constant: str) -> None:
    """A worker in another language could not read them, and it gets the body byte for byte."""
    assert "JSON" in reason(with_raw(f'"metadata": {{"x": {constant}}}'))


@pytest.mark.parametrize("field", ["request_id", "model_name", "input_data_url", "priority"])
def test_a_field_that_is_given_twice_is_refused(field: str) -> None:
    """Readers disagree on which one counts: the ledger would guard one id and the worker use another."""
    assert field in reason(with_raw(f'"{field}": "a", "{field}": "b"'))


@pytest.mark.parametrize(
    "field", ['"x": 1, "x": 2', '"metadata": {"request_id": 1, "request_id": 2}', '"n": 1e99999', '"n": -0.0e-99999']
)
def test_what_is_not_ours_is_not_judged(field: str) -> None:
    decode(with_raw(field), {})


@pytest.mark.parametrize("depth", [100, 5_000, 200_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_never_raises_anything_but_poison(depth: int, left: str, right: str) -> None:
    middle = "0" if left != "[" else ""
    for body in (
        left * depth + middle + right * depth,
        with_raw(f'"metadata": {{"x": {left * depth}0{right * depth}}}'),
    ):
        try:
            decode(body, {})
        except PoisonError:
            continue


@pytest.mark.parametrize(
    "number", ["9" * 5_000, "-" + "9" * 100_000, "0." + "1" * 100_000, "1" + "0" * 400 + ".5e-400"]
)
def test_huge_numbers_never_raise_anything_but_poison(number: str) -> None:
    try:
        decode(with_raw(f'"n": {number}'), {})
    except PoisonError:
        return


def test_many_keys_with_one_given_twice_cost_no_more_than_reading_them() -> None:
    """Compared each with each they would stop the event loop for minutes: here, a time-out."""
    keys = ",".join(f'"{i}":0' for i in range(150_000))
    assert decode(with_raw(keys + ',"0":0'), {}).request_id


def test_the_same_work_is_told_by_model_input_and_callback_alone() -> None:
    """A presigned URL differs in its query at each signing; what is for people may differ too."""
    first = decoded(input_data_url="https://b/k?sig=1", callback_sns_topic=TOPIC)
    again = decoded(
        input_data_url="https://b/k?sig=2", callback_sns_topic=TOPIC, priority="low", metadata={"a": 1}, request_id="y"
    )
    assert first.work == again.work
    others = [
        decoded(input_data_url="https://b/k?sig=1"),
        decoded(input_data_url="https://b/K", callback_sns_topic=TOPIC),
        decoded(input_data_url="https://b/k", callback_sns_topic=TOPIC, model_name="other"),
    ]
    assert first.work not in {other.work for other in others}


@pytest.mark.parametrize(("value", "generation"), [("0", 0), ("1", 1), ("42", 42), ("999999999999", 999_999_999_999)])
def test_the_generation_is_the_attribute_s(value: str, generation: int) -> None:
    assert decode(json.dumps(LEAST), {GENERATION: Attribute("Number", value)}).generation == generation


@pytest.mark.parametrize("value", ["", "-1", "1.5", "one", "²", "٢", "9" * 400, b"\x01"])
def test_a_generation_that_is_no_count_is_refused(value: str | bytes) -> None:
    with pytest.raises(PoisonError, match=GENERATION):
        decode(json.dumps(LEAST), {GENERATION: Attribute("Number", value)})


def test_a_generation_in_the_body_is_not_ours() -> None:
    assert decoded(**{GENERATION: 7}).generation == 0


TEXTS = st.text(st.sampled_from('as3:/. -+09TZ"\\\n\x00\ud800é🙂'), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@given(st.text(st.characters()))
def test_any_text_is_a_message_or_poison(body: str) -> None:
    try:
        decode(body, {})
    except PoisonError as poison:
        assert poison.reason


@given(
    st.dictionaries(st.sampled_from([*LEAST, "callback_sns_topic", "priority", "timestamp", "metadata"]), JSON),
    st.dictionaries(st.just(GENERATION), st.builds(Attribute, st.just("Number"), TEXTS | st.binary())),
)
def test_any_json_under_our_names_is_a_message_or_poison(
    fields: dict[str, Any], attributes: dict[str, Attribute]
) -> None:
    try:
        message = decode(json.dumps(LEAST | fields), attributes)
    except PoisonError as poison:
        assert poison.reason
    else:
        assert 1 <= len(message.request_id) <= 256
        assert message.request_id.isprintable()
        assert message.model_name
        assert message.generation >= 0


WHOLE = json.dumps(LEAST | {"metadata": {"user_id": "u", "deadline": "2026-01-01T00:00:00Z"}, "priority": "high"})
PIECES = st.sampled_from(
    [
        '"request_id"', '"request_id":"x",', "\x00", "\ud800", "\\ud800", "\\u0000", "{", "[" * 2000, "}" * 50, "1e999",
        "-0",
        "9" * 5000, "NaN", "\ufeff", "\u2028", ",", ":", '"', "\\", "é" * 300, "a" * 70_000, "🙂",
    ]
)  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 40), PIECES | st.text(max_size=3)), max_size=6))
def test_any_mangled_body_is_a_message_or_poison_that_can_be_rejected(edits: list[tuple[int, int, str]]) -> None:
    body = WHOLE
    for at, cut, piece in edits:
        body = body[:at] + piece + body[at + cut :]
    try:
        message = decode(body, {})
    except PoisonError as poison:
        attributes = rejected(body, {}, poison.reason)
        assert all(str(a.value).isprintable() and str(a.value).isascii() for a in attributes.values())
    else:
        assert message.request_id.isprintable()
    request_id_of(body)


@pytest.mark.parametrize(
    "body",
    ["[" * 1_048_576, '{"a":' * 200_000, '"' + "\ud800" * 300_000 + '"', "9" * 1_048_576, "\x00" * 1_048_576,
     '{"request_id": "' + "x" * 1_048_000 + '"}', "{" + '"request_id": "x",' * 58_000 + '"z": 1}'],
    ids=["deep list", "deep object", "surrogates", "a huge number", "NUL", "a huge id", "one key, many times"],
)  # fmt: skip
def test_a_mebibyte_of_anything_is_poison_and_no_more(body: str) -> None:
    with pytest.raises(PoisonError):
        decode(body, {})
    request_id_of(body)


def test_a_deadline_before_all_time_has_passed_and_is_no_fault() -> None:
    metadata = {"deadline": "0001-01-01T00:00:00+01:00"}
    assert decode(json.dumps({**LEAST, "metadata": metadata}), {}).deadline == 0.0


@pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "1e5000"])
def test_a_number_of_the_client_s_own_may_be_of_any_length(number: str) -> None:
    body = json.dumps(LEAST)[:-1] + f', "number": {number}}}'
    assert decode(body, {}).request_id == LEAST["request_id"]
    assert request_id_of(body) == LEAST["request_id"]


def test_a_generation_has_as_many_digits_as_a_queue_and_a_table_keep() -> None:
    def generation(digits: str) -> int:
        return decode(json.dumps(LEAST), {GENERATION: Attribute("Number", digits)}).generation

    assert generation("9" * 38) == int("9" * 38)
    with pytest.raises(PoisonError, match="at most 38 digits"):
        generation("9" * 39)
