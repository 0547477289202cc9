"""The closed catalogue of series (docs/reference/metrics.md). Every label value exists from the start, with zero."""

import platform
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from dispatcher.errors import Cause, Stage
from dispatcher.model import Outcome, Policy, Priority, Region

disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped; `_created` series are in nobody's catalogue

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
AGES_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)
CLAIM_OUTCOMES = ("claimed", "duplicate", "held", "taken_over", "own", "error")
QUEUES = ("master", "regional", "master_dlq", "regional_dlq")
STATES = ("visible", "in_flight", "delayed")
RESCUE_OUTCOMES = ("moved", "copy_deleted", "left")
Several = Literal["livesum", "livemax", "livemin", "livemostrecent"]
"""What a gauge says where several processes are one dispatcher (DISPATCHER_PROCESSES)."""
ANSWERED, RETRIED = "ok", "retried"


def _remembering[M: MetricWrapperBase](metric: M) -> M:
    """Look each set of labels up once: the library's own look-up costs more than counting."""
    metric.labels = cache(metric.labels)  # type: ignore[method-assign]  # the sets are few and closed
    return metric


def _begin(series: Gauge) -> None:
    """With a zero of long ago, where several processes are one: without any it is not shown; one of now would hide
    what the others have read."""
    series._value.set(0, timestamp=1.0)


class Times(Histogram):
    """A histogram that also takes several at once, which for the library's own are as many calls."""

    def observe_all(self, seconds: Sequence[float]) -> None:
        self._sum.inc(sum(seconds))
        buckets = [bisect_left(self._upper_bounds, one) for one in seconds]
        for bucket in set(buckets):
            self._buckets[bucket].inc(buckets.count(bucket))


class CallSeries(NamedTuple):
    """Of one operation in one Region."""

    seconds: Histogram
    requests: Mapping[str, Counter]  # by outcome


class Metrics:
    """One per process, on the registry it is given, so that no two tests share a count."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        home: Region,
        regions: Iterable[Region],
        policy: str,
        version: str,
        revision: str,
        in_flight_limit: int,
    ) -> None:
        regions = list(regions)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return _remembering(Counter(f"dispatcher_{name}", text, labels, registry=registry))

        def gauge(name: str, text: str, *labels: str, several: Several = "livemostrecent") -> Gauge:
            made = Gauge(f"dispatcher_{name}", text, labels, registry=registry, multiprocess_mode=several)
            return _remembering(made)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Times:
            return _remembering(Times(f"dispatcher_{name}", text, labels, registry=registry, buckets=buckets))

        self.received = counter("received_total", "Messages received from the master queue.")
        self.messages = counter("messages_total", "Received messages by how they ended.", "outcome")
        self.dispatched = counter("dispatched_total", "Messages that a Region accepted.", "target_region", "priority")
        self.claims = counter("claims_total", "Answers of the ledger to claims.", "outcome")
        self.errors = counter("errors_total", "Faults by where they were met.", "stage", "error")
        self.dispatch_duration = histogram("dispatch_duration_seconds", "From received to acknowledged.")
        self.message_age = histogram(
            "message_age_seconds", "From sent to the master queue to accepted by a Region.", buckets=AGES_S
        )
        self.ledger_duration = histogram("ledger_duration_seconds", "Calls to the ledger's table.", "operation")
        self.sqs_duration = histogram("sqs_duration_seconds", "Calls to SQS.", "operation", "target_region")
        self.aws_requests = counter(
            "aws_requests_total", "Requests to AWS, the SDK's own retries included.",
            "service", "operation", "target_region", "outcome",
        )  # fmt: skip
        self.queue_messages = gauge(
            "queue_messages", "Depth of a queue at its last reading.", "queue", "target_region", "state"
        )
        self.depth_read_at = gauge(  # the moment, not the age: an age stops growing when its process does
            "queue_depth_timestamp_seconds",
            "Unix time of a Region's last depth reading.",
            "target_region",
            several="livemax",
        )
        self.eligible = gauge("region_eligible", "1 while the Region may get new messages.", "target_region")
        self.share = gauge("region_share", "Share of new messages; sums to 1 over the eligible.", "target_region")
        self.expected_wait = gauge(
            "region_expected_wait_seconds",
            "Wait that a new message would meet; 0 while there is no estimate.",
            "target_region",
        )
        self.drain_rate = gauge(
            "region_drain_per_second",
            "Messages that its workers take per second; 0 while there is no estimate.",
            "target_region",
        )
        self.model_error = gauge(
            "routing_model_error_ratio", "Error of the projected depths; 0 while the policy projects none."
        )
        self.policy_info = gauge("routing_policy_info", "1 for the policy in force.", "policy", several="livemax")
        self.capacity = gauge("region_capacity_ratio", "Part of its usual workers that is left.", "target_region")
        self.stalled = gauge("region_stalled", "1 while messages wait there and none is taken.", "target_region")
        self.budget = gauge(
            "region_budget_messages", "Messages that may still be sent there now.", "target_region", several="livesum"
        )
        self.fleet = gauge("fleet_dispatchers", "Dispatchers at work, this one included.")
        self.fleet_unshared = gauge(
            "fleet_unshared", "1 while the others' sends are not known, and their number alone is gone by."
        )
        self.shadow_share = gauge(
            "shadow_region_share", "Share of new messages under the shadow policy.", "target_region"
        )
        self.shadow_choices = counter(
            "shadow_choices_total", "Messages that the shadow policy would have sent there.", "target_region"
        )
        self.shadow_differences = counter(
            "shadow_differences_total", "Messages that the shadow policy would have sent elsewhere."
        )
        self.rescued = counter(
            "rescued_total", "Messages moved out of a Region that serves none.", "target_region", "outcome"
        )
        self.breaker_open = gauge("breaker_open", "1 while calls to it are held off.", "dependency", several="livemax")
        self.in_flight = gauge("inflight_messages", "Messages held by this process.", several="livesum")
        self.in_flight_limit = gauge("inflight_limit", "Most messages that it may hold.", several="livesum")
        self.last_poll = gauge(
            "last_poll_timestamp_seconds", "Unix time when a poll last ended well.", several="livemax"
        )
        self.loop_tasks = gauge(
            "event_loop_tasks", "Tasks of the event loop; more and more of them is a leak.", several="livesum"
        )
        self.loop_lag = gauge("event_loop_lag_seconds", "How late the event loop woke a timer.", several="livemax")
        self.draining = gauge("draining", "1 while draining.", several="livemax")
        self.holding = gauge(
            "holding", "1 while nothing is received on purpose: no Region or no ledger to go to.", several="livemin"
        )
        self.build_info = gauge("build_info", "What runs.", "version", "revision", "python_version", several="livemax")

        for outcome in Outcome:
            self.messages.labels(outcome)
        for outcome_of_claim in CLAIM_OUTCOMES:
            self.claims.labels(outcome_of_claim)
        for stage in Stage:
            for cause in Cause:
                self.errors.labels(stage, cause)
        for region in regions:
            for priority in Priority:
                self.dispatched.labels(region, priority)
            self.depth_read_at.labels(region)
            self.breaker_open.labels(region)
            for series in (self.eligible, self.share, self.expected_wait, self.drain_rate):
                _begin(series.labels(region))
            for series in (self.capacity, self.stalled, self.budget, self.shadow_share):
                _begin(series.labels(region))
            self.shadow_choices.labels(region)
            for rescue in RESCUE_OUTCOMES:
                self.rescued.labels(region, rescue)
        for queue in QUEUES:
            for region in [home] if queue.startswith("master") else regions:
                for state in STATES:
                    _begin(self.queue_messages.labels(queue, region, state))
        for series in (self.model_error, self.fleet, self.fleet_unshared):
            _begin(series)
        self.breaker_open.labels("ledger")
        for known in Policy:
            self.policy_info.labels(known).set(known == policy)
        self.in_flight_limit.set(in_flight_limit)
        self.build_info.labels(version, revision, platform.python_version()).set(1)

    @classmethod
    def unread(cls) -> "Metrics":
        """For a command that ends soon: counted, and read by nobody."""
        home = Region("-")
        return cls(CollectorRegistry(), home=home, regions=(), policy="-", version="-", revision="-", in_flight_limit=0)

    def of_call(self, service: str, operation: str, region: Region) -> CallSeries:
        """Return the series of a call; they exist from now on."""
        is_ledger = service == "dynamodb"
        return CallSeries(
            self.ledger_duration.labels(operation) if is_ledger else self.sqs_duration.labels(operation, region),
            {
                outcome: self.aws_requests.labels(service, operation, region, outcome)
                for outcome in (ANSWERED, RETRIED, *Cause)
            },
        )

    def shadow(self, chosen: Region, shadow: Region) -> None:
        """Count a choice beside the one that the shadow policy would have made."""
        self.shadow_choices.labels(shadow).inc()
        if shadow != chosen:
            self.shadow_differences.inc()

    def error(self, stage: Stage, cause: Cause) -> None:
        self.errors.labels(stage, cause).inc()
