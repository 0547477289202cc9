"""Every name, type and label; every label value from the start, with zero."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dispatcher.errors import Cause, Stage
from dispatcher.model import Policy, Region
from dispatcher.telemetry.metrics import AGES_S, Metrics

HOME, A, B = Region("us-east-1"), Region("eu-west-1"), Region("ap-south-1")
CATALOGUE: dict[str, tuple[str, set[str]]] = {
    "received_total": ("counter", set()),
    "messages_total": ("counter", {"outcome"}),
    "dispatched_total": ("counter", {"target_region", "priority"}),
    "claims_total": ("counter", {"outcome"}),
    "errors_total": ("counter", {"stage", "error"}),
    "dispatch_duration_seconds": ("histogram", set()),
    "message_age_seconds": ("histogram", set()),
    "ledger_duration_seconds": ("histogram", {"operation"}),
    "sqs_duration_seconds": ("histogram", {"operation", "target_region"}),
    "aws_requests_total": ("counter", {"service", "operation", "target_region", "outcome"}),
    "queue_messages": ("gauge", {"queue", "target_region", "state"}),
    "queue_depth_timestamp_seconds": ("gauge", {"target_region"}),
    "region_eligible": ("gauge", {"target_region"}),
    "region_share": ("gauge", {"target_region"}),
    "region_expected_wait_seconds": ("gauge", {"target_region"}),
    "region_drain_per_second": ("gauge", {"target_region"}),
    "routing_model_error_ratio": ("gauge", set()),
    "routing_policy_info": ("gauge", {"policy"}),
    "breaker_open": ("gauge", {"dependency"}),
    "inflight_messages": ("gauge", set()),
    "inflight_limit": ("gauge", set()),
    "last_poll_timestamp_seconds": ("gauge", set()),
    "event_loop_lag_seconds": ("gauge", set()),
    "draining": ("gauge", set()),
    "holding": ("gauge", set()),
    "build_info": ("gauge", {"version", "revision", "python_version"}),
}
CATALOGUE |= {  # beyond what was asked for
    "event_loop_tasks": ("gauge", set()),
    "region_capacity_ratio": ("gauge", {"target_region"}),
    "region_stalled": ("gauge", {"target_region"}),
    "region_budget_messages": ("gauge", {"target_region"}),
    "fleet_dispatchers": ("gauge", set()),
    "fleet_unshared": ("gauge", set()),
    "shadow_region_share": ("gauge", {"target_region"}),
    "shadow_choices_total": ("counter", {"target_region"}),
    "shadow_differences_total": ("counter", set()),
    "rescued_total": ("counter", {"target_region", "outcome"}),
}
INFORMATION = {"routing_policy_info", "build_info", "inflight_limit"}  # which say something from the start


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    metrics = Metrics(
        made, home=HOME, regions=[A, B], policy="inverse-depth", version="1", revision="abc", in_flight_limit=7
    )
    metrics.of_call("sqs", "send_message_batch", A)
    metrics.of_call("dynamodb", "put_item", HOME)
    return made


def families(registry: CollectorRegistry) -> dict[str, Metric]:
    """By the contract's names: the library keeps a counter's without its ending."""
    return {
        metric.name.removeprefix("dispatcher_") + ("_total" if metric.type == "counter" else ""): metric
        for metric in registry.collect()
    }


def series(registry: CollectorRegistry, name: str) -> set[tuple[str, ...]]:
    """Label values, in the order of the labels' names."""
    return {
        tuple(value for label, value in sorted(sample.labels.items()) if label != "le")
        for sample in families(registry)[name].samples
        if not sample.name.endswith("_created")
    }


def test_the_catalogue_is_the_contract_s_name_for_name(registry: CollectorRegistry) -> None:
    found = families(registry)
    assert found.keys() == CATALOGUE.keys()
    assert {name: metric.type for name, metric in found.items()} == {
        name: kind for name, (kind, _) in CATALOGUE.items()
    }
    assert all(metric.name.startswith("dispatcher_") for metric in found.values())
    assert all(metric.documentation for metric in found.values())


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_series_has_the_contract_s_labels_and_exists_from_the_start(registry: CollectorRegistry, name: str) -> None:
    samples = families(registry)[name].samples
    assert samples
    assert all(sample.labels.keys() - {"le"} == CATALOGUE[name][1] for sample in samples)


REGIONS = (A, B)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("messages_total", [("dispatched", "duplicate", "rejected", "held", "released", "failed")]),
        ("claims_total", [("claimed", "duplicate", "held", "taken_over", "own", "error")]),
        ("dispatched_total", [("high", "normal", "low"), REGIONS]),
        ("errors_total", [tuple(Cause), ("receive", "decode", "ledger", "depth", "route", "send", "delete", "extend")]),
        ("queue_depth_timestamp_seconds", [REGIONS]),
        ("region_eligible", [REGIONS]),
        ("region_share", [REGIONS]),
        ("region_expected_wait_seconds", [REGIONS]),
        ("region_drain_per_second", [REGIONS]),
        ("breaker_open", [("ledger", *REGIONS)]),
        ("routing_policy_info", [tuple(Policy)]),
        ("rescued_total", [("moved", "copy_deleted", "left"), REGIONS]),
    ],
)
def test_every_label_value_exists_from_the_start(
    registry: CollectorRegistry, name: str, values: list[tuple[str, ...]]
) -> None:
    assert series(registry, name) == set(product(*values))


def test_every_queue_has_its_depths_in_its_own_region(registry: CollectorRegistry) -> None:
    places = [("master", HOME), ("master_dlq", HOME), *product(("regional", "regional_dlq"), REGIONS)]
    assert series(registry, "queue_messages") == {
        (queue, state, region) for (queue, region), state in product(places, ("visible", "in_flight", "delayed"))
    }


def test_a_call_s_series_exist_before_it_is_made(registry: CollectorRegistry) -> None:
    assert series(registry, "sqs_duration_seconds") == {("send_message_batch", A)}
    assert series(registry, "ledger_duration_seconds") == {("put_item",)}
    outcomes = {(service, outcome) for _, outcome, service, _ in series(registry, "aws_requests_total")}
    assert outcomes >= set(product(("sqs", "dynamodb"), Cause))


@pytest.mark.parametrize("name", sorted(CATALOGUE.keys() - INFORMATION))
def test_a_series_starts_at_zero(registry: CollectorRegistry, name: str) -> None:
    samples = families(registry)[name].samples
    assert {sample.value for sample in samples if not sample.name.endswith("_created")} == {0.0}


@pytest.mark.parametrize("name", sorted(INFORMATION))
def test_what_informs_says_so_from_the_start(registry: CollectorRegistry, name: str) -> None:
    values = {sample.value for sample in families(registry)[name].samples}
    assert values == {"inflight_limit": {7.0}, "routing_policy_info": {0.0, 1.0}}.get(name, {1.0})


def test_the_exposition_parses_as_text_and_as_openmetrics(registry: CollectorRegistry) -> None:
    names = {f"dispatcher_{name}" for name in CATALOGUE}
    for asked_for, parse in (
        ("text/plain", parse_text),
        ("application/openmetrics-text; version=1.0.0", parse_openmetrics),
    ):
        encode, _ = choose_encoder(asked_for)
        parsed = {family.name for family in parse(encode(registry).decode())}
        assert {name.removesuffix("_total") for name in names} <= {name.removesuffix("_total") for name in parsed}


def test_an_error_is_counted_under_its_stage_and_cause() -> None:
    metrics = Metrics(
        CollectorRegistry(), home=HOME, regions=[A], policy="-", version="-", revision="-", in_flight_limit=1
    )
    metrics.error(Stage.SEND, Cause.AMBIGUOUS)
    assert metrics.errors.labels("send", "ambiguous")._value.get() == 1


@given(st.lists(st.sampled_from([0.0, *AGES_S]) | st.floats(0, 1e6)))
def test_several_at_once_are_counted_as_one_by_one(seconds: list[float]) -> None:
    together, single = Metrics.unread(), Metrics.unread()
    together.message_age.observe_all(seconds)
    for one in seconds:
        single.message_age.observe(one)
    (counted,), (expected,) = together.message_age.collect(), single.message_age.collect()
    assert [(s.name, s.labels) for s in counted.samples] == [(s.name, s.labels) for s in expected.samples]
    assert [s.value for s in counted.samples] == pytest.approx([s.value for s in expected.samples])


def test_two_processes_in_one_share_no_count() -> None:
    one, other = Metrics.unread(), Metrics.unread()
    one.received.inc()
    assert (one.received._value.get(), other.received._value.get()) == (1, 0)


def test_nothing_stands_beside_the_catalogue(registry: CollectorRegistry) -> None:
    names = {sample.name for metric in registry.collect() for sample in metric.samples}
    assert {name for name in names if name.endswith("_created")} == set()


ONE_OF_SEVERAL = """
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from dispatcher.model import Region
from dispatcher.telemetry.metrics import AGES_S, Metrics
home = Region("us-east-1")
made = Metrics(CollectorRegistry(), home=home, regions=[home], policy="-", version="-", revision="-", in_flight_limit=7)
"""


def test_a_process_that_starts_hides_nothing_that_another_has_read(tmp_path: Path) -> None:
    def run(rest: str) -> str:
        command = [sys.executable, "-c", ONE_OF_SEVERAL + rest]
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    collected = "MultiProcessCollector(CollectorRegistry()).collect()"
    shown = run(f"print(*(m.name for m in {collected} if m.type == 'gauge' and m.samples))").split()
    assert {name.removeprefix("dispatcher_") for name in shown} == {
        name for name, (kind, _) in CATALOGUE.items() if kind == "gauge"
    }
    run("made.queue_messages.labels('regional', home, 'visible').set(5)")
    values = f"s.value for m in {collected} for s in m.samples if m.name == 'dispatcher_queue_messages' and s.value"
    assert run(f"print(*({values}))") == "5.0\n"
