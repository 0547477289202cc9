"""Writes dashboards/*.json: five pages of the same look. `python deploy/grafana/generate.py` after a change here.

Every panel says in which unit it is and what it means; a query that many panels share is written once.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("dashboards")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
MINE = 'job="$job", region=~"$region"'  # of the tasks looked at
THERE = 'job="$job", target_region=~"$target_region"'  # of the Regions looked at
WIDTH, HEIGHT = 24, 8
OBJECTIVE = 0.001  # of messages may fail


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    description: str
    queries: tuple[tuple[str, str], ...]  # expression and legend
    kind: str = "timeseries"
    width: int = 12
    height: int = HEIGHT
    stack: bool = False
    thresholds: tuple[tuple[float | None, str], ...] = ((None, "green"),)


def rate(metric: str, labels: str = "", by: str = "", of: str = MINE) -> str:
    """The sum of rates a second."""
    kept = f" by ({by})" if by else ""
    return f"sum{kept} (rate({metric}{{{of}{', ' + labels if labels else ''}}}[$__rate_interval]))"


def quantile(q: float, histogram: str, labels: str = "", by: str = "", of: str = MINE) -> str:
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', labels, by + ', le' if by else 'le', of)})"


def depth(queue: str, state: str = "visible") -> str:
    """Every task reports the same depths: the largest, never the sum."""
    return f'max by (queue, target_region) (dispatcher_queue_messages{{{THERE}, queue=~"{queue}", state="{state}"}})'


def gauge(metric: str) -> str:
    """A number of a Region that every task has an opinion of: the mean."""
    return f"avg by (target_region) ({metric}{{{THERE}}})"


def stat(title: str, unit: str, description: str, expression: str, *thresholds: tuple[float | None, str]) -> Panel:
    return Panel(
        title, unit, description, ((expression, ""),), "stat", 4, 4, thresholds=thresholds or ((None, "green"),)
    )


GOOD_TO_BAD = ((None, "green"), (1, "red"))
BAD_TO_GOOD = ((None, "red"), (1, "green"))
USUAL_TO_RARE = ((None, "transparent"), (1, "blue"))
REGION, INSTANCE = "{{target_region}}", "{{region}} {{instance}}"

OVERVIEW = [
    stat(
        "Error budget left",
        "percentunit",
        "Of the 0.1 % of messages that may fail in 30 days (or as long as Prometheus keeps). Below 0: missed.",
        '1 - (sum(increase(dispatcher_messages_total{outcome="failed"}[30d])) or vector(0))'
        f" / (sum(increase(dispatcher_messages_total[30d])) > 0) / {OBJECTIVE}",
        (None, "red"),
        (0.25, "orange"),
        (0.5, "green"),
    ),
    stat(
        "Burn rate, last hour",
        "none",
        "How many times faster than allowed the budget is spent. Above 14.4 somebody is woken.",
        f"dispatcher:sli_error:ratio_rate1h / {OBJECTIVE}",
        (None, "green"),
        (1, "orange"),
        (14.4, "red"),
    ),
    stat("Dispatched", "reqps", "Messages that a Region accepted, a second.", rate("dispatcher_dispatched_total")),
    stat(
        "Age, 99 %",
        "s",
        "From sent to the master queue to accepted by a Region, for 99 of 100 messages. What users feel.",
        quantile(0.99, "dispatcher_message_age_seconds"),
        (None, "green"),
        (60, "orange"),
        (300, "red"),
    ),
    stat(
        "Waiting in the master queue",
        "short",
        "Visible messages of the master queue, at the last reading.",
        'max(dispatcher_queue_messages{job="$job", queue="master", state="visible"})',
        (None, "green"),
        (10_000, "orange"),
    ),
    stat(
        "Dead letters",
        "short",
        "Of the master queue and of all Regions. More than none is a ticket.",
        "sum(max by (queue, target_region) ("
        'dispatcher_queue_messages{job="$job", queue=~"master_dlq|regional_dlq", state="visible"}))',
        *GOOD_TO_BAD,
    ),
    Panel(
        "Dispatched to each Region",
        "reqps",
        "Messages that each Region accepted, a second.",
        ((rate("dispatcher_dispatched_total", by="target_region"), REGION),),
        stack=True,
    ),
    Panel(
        "Age of messages",
        "s",
        "From sent to the master queue to accepted by a Region.",
        tuple((quantile(q, "dispatcher_message_age_seconds"), f"{q:.0%}") for q in (0.5, 0.95, 0.99)),
    ),
    Panel(
        "Queues",
        "short",
        "Visible messages of the master queue and of each Region's.",
        ((depth("master|regional"), "{{queue}} {{target_region}}"),),
    ),
    Panel(
        "Eligible Regions",
        "short",
        "Regions that may get messages now, of all that are configured.",
        (
            ('sum(max by (target_region) (dispatcher_region_eligible{job="$job"}))', "eligible"),
            ('count(count by (target_region) (dispatcher_region_eligible{job="$job"}))', "configured"),
        ),
    ),
    Panel(
        "Tasks",
        "short",
        "Dispatchers that can be scraped, by the Region that they run in.",
        (('sum by (region) (up{job="$job"})', "{{region}}"),),
        stack=True,
    ),
    Panel(
        "Firing alerts",
        "none",
        "Alerts of the dispatcher that fire now; each has a page in docs/runbooks.",
        (('ALERTS{alertname=~"Dispatcher.+", alertstate="firing", severity!="none"}', ""),),
        "table",
    ),
]

FLOW = [
    Panel(
        "Received, and how it ended",
        "reqps",
        "Each received message ends in exactly one way; the two meet but for what is in flight.",
        (
            (rate("dispatcher_received_total"), "received"),
            (rate("dispatcher_messages_total", by="outcome"), "{{outcome}}"),
        ),
    ),
    Panel(
        "Errors",
        "reqps",
        "Faults by where they were met. send ambiguous: each may have become a copy.",
        ((rate("dispatcher_errors_total", by="stage, error") + " > 0", "{{stage}} {{error}}"),),
    ),
    Panel(
        "From received to acknowledged",
        "s",
        "Time that a message spends in a dispatcher.",
        tuple((quantile(q, "dispatcher_dispatch_duration_seconds"), f"{q:.0%}") for q in (0.5, 0.95, 0.99)),
    ),
    Panel(
        "Age of messages",
        "s",
        "How many messages reached a Region at which age: darker is more.",
        ((rate("dispatcher_message_age_seconds_bucket", by="le"), "{{le}}"),),
        "heatmap",
    ),
    Panel(
        "By priority",
        "reqps",
        "Dispatched messages of each priority.",
        ((rate("dispatcher_dispatched_total", by="priority"), "{{priority}}"),),
        stack=True,
    ),
    Panel(
        "Duplicates",
        "percentunit",
        "Part of the messages that had been dispatched before and were dropped.",
        (
            (
                f"{rate('dispatcher_messages_total', 'outcome="duplicate"')}"
                f" / ({rate('dispatcher_messages_total')} > 0)",
                "duplicates",
            ),
        ),
    ),
    Panel(
        "SQS calls, 99 %",
        "s",
        "Duration of calls to SQS by operation; a receive waits up to its poll time.",
        ((quantile(0.99, "dispatcher_sqs_duration_seconds", by="operation"), "{{operation}}"),),
    ),
    Panel(
        "AWS calls for each message",
        "none",
        "Requests to AWS, the SDK's own retries included, for each dispatched message: what it costs.",
        (
            (
                f"{rate('dispatcher_aws_requests_total', by='operation')} / on () group_left ()"
                f" ({rate('dispatcher_dispatched_total')} > 0)",
                "{{operation}}",
            ),
        ),
        stack=True,
    ),
]

REGIONS = [
    Panel(
        "Waiting in each Region",
        "short",
        "Visible messages of each Region's queue; nothing is sent past its threshold (5,000 by default).",
        ((depth("regional"), REGION),),
    ),
    Panel(
        "Taken by workers",
        "short",
        "Messages in flight at each Region's workers.",
        ((depth("regional", "in_flight"), REGION),),
    ),
    Panel(
        "Share of new messages",
        "percentunit",
        "What the policy in force gives each Region; sums to 1 over the eligible.",
        ((gauge("dispatcher_region_share"), REGION),),
        stack=True,
    ),
    Panel(
        "Share of dispatched messages",
        "percentunit",
        "What each Region really got.",
        (
            (
                f"{rate('dispatcher_dispatched_total', by='target_region')}"
                f" / on () group_left () ({rate('dispatcher_dispatched_total')} > 0)",
                REGION,
            ),
        ),
        stack=True,
    ),
    Panel(
        "Expected wait",
        "s",
        "That a new message would meet: what the choice goes by. 0 while there is no estimate.",
        ((gauge("dispatcher_region_expected_wait_seconds"), REGION),),
    ),
    Panel(
        "Drain",
        "reqps",
        "Messages that each Region's workers take, a second, as observed.",
        ((gauge("dispatcher_region_drain_per_second"), REGION),),
    ),
    Panel(
        "Eligible",
        "bool_yes_no",
        "Green while a Region could get messages; /status has the reason in words when it could not.",
        ((f"max by (target_region) (dispatcher_region_eligible{{{THERE}}})", REGION),),
        "state-timeline",
        thresholds=BAD_TO_GOOD,
    ),
    Panel(
        "Capacity left, and stalls",
        "percentunit",
        "Part of its usual workers that a Region has left; stalled: messages wait and none is taken.",
        (
            (gauge("dispatcher_region_capacity_ratio"), REGION),
            (f"max by (target_region) (dispatcher_region_stalled{{{THERE}}}) == 1", "{{target_region}} stalled"),
        ),
    ),
    Panel(
        "Sends, 99 %",
        "s",
        "Duration of a send to each Region.",
        (
            (
                quantile(
                    0.99,
                    "dispatcher_sqs_duration_seconds",
                    'operation="send_message_batch"',
                    "target_region",
                    f'{MINE}, target_region=~"$target_region"',
                ),
                REGION,
            ),
        ),
    ),
    Panel(
        "Age of the depth reading",
        "s",
        "Above twice DISPATCHER_DEPTH_TTL_SECONDS (60 by default) the depth counts as unknown.",
        ((f"time() - max by (target_region) (dispatcher_queue_depth_timestamp_seconds{{{THERE}}} > 0)", REGION),),
    ),
    Panel(
        "Dead letters of each Region",
        "short",
        "What workers gave up after three receives.",
        ((depth("regional_dlq"), REGION),),
    ),
    Panel(
        "Rescued",
        "reqps",
        "Messages moved out of Regions that stand still (DISPATCHER_RESCUE), by what became of them.",
        (
            (
                rate("dispatcher_rescued_total", by="target_region, outcome", of=f"{THERE}"),
                "{{target_region}} {{outcome}}",
            ),
        ),
    ),
]

LEDGER = [
    Panel(
        "Duration of calls, 99 %",
        "s",
        "By operation. From another Region the way there and back is in it.",
        ((quantile(0.99, "dispatcher_ledger_duration_seconds", by="operation"), "{{operation}}"),),
    ),
    Panel(
        "Duration of calls, half",
        "s",
        "By operation: the usual call.",
        ((quantile(0.5, "dispatcher_ledger_duration_seconds", by="operation"), "{{operation}}"),),
    ),
    Panel(
        "Answers to claims",
        "reqps",
        "claimed: ours now; taken_over: a dead dispatcher's; held: another's that lives; own: ours already.",
        ((rate("dispatcher_claims_total", by="outcome"), "{{outcome}}"),),
    ),
    Panel(
        "Calls that failed",
        "reqps",
        "By what AWS said: throttled, denied, no answer. retried: the SDK tried again by itself.",
        (
            (
                rate("dispatcher_aws_requests_total", 'service="dynamodb", outcome!="ok"', "operation, outcome")
                + " > 0",
                "{{operation}} {{outcome}}",
            ),
        ),
    ),
    Panel(
        "Calls",
        "reqps",
        "Requests to the table, by operation; a batch is one.",
        ((rate("dispatcher_aws_requests_total", 'service="dynamodb"', "operation"), "{{operation}}"),),
    ),
    Panel(
        "Breakers",
        "bool_yes_no",
        "Red while any dispatcher holds off calls to the ledger or to a Region.",
        ((f"max by (dependency) (dispatcher_breaker_open{{{MINE}}})", "{{dependency}}"),),
        "state-timeline",
        thresholds=GOOD_TO_BAD,
    ),
]

PROCESS = [
    Panel(
        "Slots in use",
        "percentunit",
        "Messages held, of DISPATCHER_MAX_IN_FLIGHT. Near 1 for long: more tasks, or a larger limit.",
        ((f"dispatcher_inflight_messages{{{MINE}}} / dispatcher_inflight_limit{{{MINE}}}", INSTANCE),),
    ),
    Panel(
        "Lateness of the event loop",
        "s",
        "How late timers wake: above 0.25 s something blocks, or the CPU is too small.",
        ((f"dispatcher_event_loop_lag_seconds{{{MINE}}}", INSTANCE),),
    ),
    Panel(
        "CPU",
        "percentunit",
        "Of one vCPU.",
        ((f"rate(process_cpu_seconds_total{{{MINE}}}[$__rate_interval])", INSTANCE),),
    ),
    Panel(
        "Memory",
        "bytes",
        "Resident memory.",
        ((f"process_resident_memory_bytes{{{MINE}}}", INSTANCE),),
    ),
    Panel(
        "Open files and sockets",
        "short",
        "Climbing without end is a leak.",
        ((f"process_open_fds{{{MINE}}}", INSTANCE),),
    ),
    Panel(
        "Tasks of the event loop",
        "short",
        "Climbing without end is a leak.",
        ((f"dispatcher_event_loop_tasks{{{MINE}}}", INSTANCE),),
    ),
    Panel(
        "Since the last poll",
        "s",
        "Above 90 s, and neither holding nor draining, a dispatcher has stopped.",
        ((f"time() - (dispatcher_last_poll_timestamp_seconds{{{MINE}}} > 0)", INSTANCE),),
    ),
    Panel(
        "Holding and draining",
        "bool_yes_no",
        "Holding: nothing is received on purpose. Draining: on its way out.",
        (
            (f"max by (region, instance) (dispatcher_holding{{{MINE}}})", INSTANCE + " holding"),
            (f"max by (region, instance) (dispatcher_draining{{{MINE}}})", INSTANCE + " draining"),
        ),
        "state-timeline",
        thresholds=USUAL_TO_RARE,
    ),
    Panel(
        "Age of processes",
        "s",
        "Falls to nothing at each start.",
        ((f"time() - process_start_time_seconds{{{MINE}}}", INSTANCE),),
    ),
    Panel(
        "Versions",
        "short",
        "Tasks of each version and image; two for long is a half-done deployment.",
        ((f"count by (version, revision) (dispatcher_build_info{{{MINE}}})", "{{version}} {{revision}}"),),
        stack=True,
    ),
    Panel(
        "Dispatchers that know each other",
        "short",
        "How many each believes are at work, itself included; all should say the same.",
        ((f"dispatcher_fleet_dispatchers{{{MINE}}}", INSTANCE),),
    ),
]

DASHBOARDS = {"overview": OVERVIEW, "flow": FLOW, "regions": REGIONS, "ledger": LEDGER, "process": PROCESS}


def rendered(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        custom = {"fillOpacity": 20 if panel.stack else 5, "showPoints": "never"}
        custom |= {"stacking": {"mode": "normal", "group": "A"}} if panel.stack else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "custom": custom,
                "color": {"mode": "thresholds" if panel.kind in ("stat", "state-timeline") else "palette-classic"},
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"value": value, "color": color} for value, color in panel.thresholds],
                },
            },
            "overrides": [],
        },
        "options": {
            "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
            "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"},
            "heatmap": {"calculate": False, "yAxis": {"unit": panel.unit}},
            "state-timeline": {"mergeValues": True, "showValue": "never"},
            "table": {"showHeader": True},
        }[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend or "__auto",
                "range": panel.kind != "table",
                "instant": panel.kind == "table",
                "format": {"heatmap": "heatmap", "table": "table"}.get(panel.kind, "time_series"),
            }
            for position, (expression, legend) in enumerate(panel.queries)
        ],
    }


def laid_out(panels: Iterable[Panel]) -> list[dict[str, Any]]:
    """Left to right, then down."""
    x = y = row = 0
    placed = []
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        placed.append(rendered(number, panel, x, y))
        x, row = x + panel.width, max(row, panel.height)
    return placed


def variable(name: str, query: str, *, several: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": several,
        "includeAll": several,
        "current": {"text": "All", "value": "$__all"} if several else {"text": "dispatcher", "value": "dispatcher"},
    }


def dashboard(name: str, panels: Iterable[Panel]) -> dict[str, Any]:
    return {
        "uid": f"dispatcher-{name}",
        "title": f"Dispatcher: {name}",
        "tags": ["dispatcher"],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "graphTooltip": 1,
        "links": [
            {"type": "dashboards", "title": "Dispatcher", "tags": ["dispatcher"], "asDropdown": False, "keepTime": True}
        ],
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Prometheus", "value": "prometheus"},
                },
                variable("job", "label_values(dispatcher_build_info, job)", several=False),
                variable("region", 'label_values(dispatcher_build_info{job="$job"}, region)', several=True),
                variable(
                    "target_region", 'label_values(dispatcher_region_share{job="$job"}, target_region)', several=True
                ),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Starts",
                    "datasource": DATASOURCE,
                    "enable": True,
                    "iconColor": "blue",
                    "expr": 'time() - process_start_time_seconds{job="$job"} < 60',
                    "titleFormat": "started",
                }
            ]
        },
        "panels": laid_out(panels),
    }


def files() -> dict[str, str]:
    """What belongs into the folder: names and contents."""
    return {
        f"{name}.json": json.dumps(dashboard(name, panels), indent=1, ensure_ascii=False) + "\n"
        for name, panels in DASHBOARDS.items()
    }


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text)
