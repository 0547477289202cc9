"""What travels with a body, within SQS's limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model import Attribute
from dispatcher.policy.decode import GENERATION
from dispatcher.policy.envelope import ATTRIBUTES_MAX, BYTES_MAX, PREFIX, REASON, forwarded, rejected, size_of

OURS = {
    "dispatcher.request_id": Attribute("String", "req-1"),
    "dispatcher.region": Attribute("String", "eu-west-1"),
    "dispatcher.source_message_id": Attribute("String", "m-1"),
    "dispatcher.dispatched_at": Attribute("String", "2025-12-02T10:23:00.000Z"),
    "dispatcher.attempt": Attribute("Number", "1"),
}


def text(value: str = "v") -> Attribute:
    return Attribute("String", value)


def clients(count: int) -> dict[str, Attribute]:
    return {f"client{n}": text() for n in range(count)}


def test_sqs_s_own_limits_are_kept_to() -> None:
    assert (ATTRIBUTES_MAX, BYTES_MAX) == (10, 1024 * 1024)


def test_size_counts_names_types_and_values_in_bytes() -> None:
    attributes = {"naïve": text("ü"), "raw": Attribute("Binary", b"\xff\xff")}
    assert size_of("é", attributes) == 2 + (6 + 6 + 2) + (3 + 6 + 2)


def test_the_client_s_attributes_travel_on_with_ours_beside_them() -> None:
    client = {"a": text(), "b": Attribute("Binary.png", b"\x00"), "c": Attribute("Number", "1")}
    assert forwarded("{}", client, OURS) == client | OURS


def test_what_a_client_puts_under_our_prefix_is_replaced() -> None:
    client = {"dispatcher.region": text("forged"), "dispatcher.other": text(), REASON: text()}
    assert forwarded("{}", client, OURS) == OURS


def test_a_name_that_only_looks_like_ours_is_the_client_s() -> None:
    client = {"dispatcher": text(), "dispatcherx": text(), "Dispatcher.region": text()}
    assert forwarded("{}", client, {}) == client


def test_the_generation_is_the_sender_s_to_set() -> None:
    client = {GENERATION: Attribute("Number", "2")}
    assert forwarded("{}", client, OURS) == client | OURS


@pytest.mark.parametrize(("theirs", "ours"), [(5, 5), (6, 4), (9, 1), (10, 0)])
def test_of_ten_attributes_ours_take_what_the_client_leaves(theirs: int, ours: int) -> None:
    assert forwarded("{}", clients(theirs), OURS) == clients(theirs) | dict(list(OURS.items())[:ours])


def test_one_that_stays_behind_for_the_prefix_makes_room() -> None:
    assert len(forwarded("{}", clients(9) | {"dispatcher.forged": text()}, OURS)) == 10


def test_ours_fill_the_last_byte_and_not_one_more() -> None:
    name, attribute = next(iter(OURS.items()))
    size = size_of("", {name: attribute})
    assert forwarded("x" * (BYTES_MAX - size), {}, {name: attribute})
    assert not forwarded("x" * (BYTES_MAX - size + 1), {}, {name: attribute})


def test_a_reason_goes_beside_the_client_s_attributes() -> None:
    client = clients(3) | {GENERATION: Attribute("Number", "2")}
    assert rejected("{}", client, "no model") == client | {REASON: text("no model")}


def test_an_old_reason_gives_way_to_the_new_one() -> None:
    assert rejected("{}", clients(9) | {REASON: text("old")}, "new") == clients(9) | {REASON: text("new")}


def test_of_ten_client_attributes_the_last_by_name_yields_to_the_reason() -> None:
    assert rejected("{}", clients(10), "bad") == clients(9) | {REASON: text("bad")}


def test_an_attribute_under_our_prefix_yields_to_the_reason_before_one_of_the_client_s_own() -> None:
    """The prefix is ours: what stands under it is replaced anyway, so the client need not lose anything."""
    client = {f"zclient{n}": text() for n in range(9)}
    assert rejected("{}", client | {"dispatcher.region": text()}, "bad") == client | {REASON: text("bad")}


@pytest.mark.parametrize("spare", [0, 18])
def test_with_no_byte_for_a_reason_no_attribute_is_dropped_for_it(spare: int) -> None:
    """Then it is in the log and the metric only."""
    client = clients(10)
    body = "x" * (BYTES_MAX - size_of("", client) - spare)
    assert rejected(body, client, "bad") == client


def test_a_reason_is_cut_to_the_bytes_that_are_left() -> None:
    body = "x" * (BYTES_MAX - len(REASON) - len("String") - 2)
    assert rejected(body, {}, "bad") == {REASON: text("ba")}


NAMES = st.sampled_from([f"n{n}" for n in range(12)] + [PREFIX + n for n in ("region", "x", "generation", "attempt")])
ATTRIBUTES = st.builds(Attribute, st.sampled_from(["String", "Number", "Binary"]), st.text("aé🙂", max_size=9))
CLIENTS = st.dictionaries(NAMES, ATTRIBUTES, max_size=ATTRIBUTES_MAX)
BYTES = st.integers(0, 400)


def outside(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {name: value for name, value in attributes.items() if not name.startswith(PREFIX)}


@given(st.text("xé"), CLIENTS, st.lists(st.sampled_from(list(OURS.items())), unique=True).map(dict), BYTES)
def test_forwarding_never_loses_a_client_s_attribute_nor_breaks_a_limit_for_ours(
    body: str, client: dict[str, Attribute], ours: dict[str, Attribute], bytes_max: int
) -> None:
    sent = forwarded(body, client, ours, bytes_max=bytes_max)
    assert outside(sent) == outside(client)
    assert sent.get(GENERATION) == client.get(GENERATION)
    assert len(sent) <= ATTRIBUTES_MAX
    added = sent.keys() & ours.keys()
    assert not added or size_of(body, sent) <= bytes_max
    assert all(sent[name] == ours[name] for name in added)
    assert sent.keys() <= client.keys() | added


@given(st.text("xé"), CLIENTS, st.text(), BYTES)
def test_rejecting_loses_at_most_the_last_of_ten_and_only_for_a_reason(
    body: str, client: dict[str, Attribute], reason: str, bytes_max: int
) -> None:
    sent = rejected(body, client, reason, bytes_max=bytes_max)
    assert len(sent) <= ATTRIBUTES_MAX
    lost = outside(client).keys() - sent.keys()
    theirs = outside(client).keys() | (client.keys() & {GENERATION})
    assert len(lost) <= max(0, len(theirs) - ATTRIBUTES_MAX + 1)
    if lost:
        assert REASON in sent
        assert lost == {max(outside(client))}
    if REASON in sent:
        assert size_of(body, sent) <= bytes_max
        assert sent[REASON].value
