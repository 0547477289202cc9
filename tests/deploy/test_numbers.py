"""Numbers that have to agree, read from every file that says one of them: one table, one test."""

import json
import re
from typing import Any

from dispatcher.aws import provision
from dispatcher.settings import HttpSettings, Settings
from tests.deploy.conftest import ROOT, load

TERRAFORM = ROOT / "deploy/terraform"


def default(name: str) -> float:
    value = Settings.model_fields[name].default
    assert isinstance(value, int | float)
    return float(value)


def said(path: str, pattern: str) -> set[float]:
    """Every number that the pattern finds in a file; it has to find one."""
    found = re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{path} no longer says {pattern}"
    return {float(number) for number in found}


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_a_drain_ends_before_whoever_runs_the_daemon_loses_patience() -> None:
    drain = default("drain_timeout_seconds")
    compose = seconds(load("docker-compose.yml")["services"]["dispatcher"]["stop_grace_period"])
    (fargate,) = said("deploy/terraform/modules/service/main.tf", r"stop_timeout = (\d+)")
    assert drain < compose == fargate == 120  # Fargate's most, and the notice that Fargate Spot gives
    assert default("poll_wait_seconds") < drain


def test_a_lease_ends_before_its_message_returns_and_that_before_the_queues_own_time() -> None:
    lease, visibility = default("claim_lease_seconds"), default("visibility_seconds")
    assert lease < visibility < provision.MASTER_VISIBILITY_S


def test_queues_are_alike_in_terraform_on_the_emulator_and_in_the_brief() -> None:
    for root in ("main.tf", "examples/per-region-state/home/main.tf"):
        module = r'module "master_queue" \{.*?visibility_timeout_seconds\s+= (\d+)'
        assert said(f"deploy/terraform/{root}", module) == {provision.MASTER_VISIBILITY_S} == {600}
    for root in ("main.tf", "examples/per-region-state/region/main.tf"):
        module = r'module "regional_queue" \{.*?visibility_timeout_seconds\s+= (\d+)'
        assert said(f"deploy/terraform/{root}", module) == {provision.REGIONAL_VISIBILITY_S} == {3600}
    queue = "deploy/terraform/modules/queue"
    receives = r'variable "max_receive_count" \{.*?default\s+= (\d+)'
    assert said(f"{queue}/variables.tf", receives) == {provision.RECEIVES_BEFORE_REDRIVE} == {3}
    assert said("deploy/terraform/variables.tf", receives) == {3}
    retention = r'variable "message_retention_seconds" \{.*?default\s+= (\d+)'
    assert said(f"{queue}/variables.tf", retention) == {provision.RETENTION_S}
    assert said(f"{queue}/main.tf", r"dead_letter_retention_seconds = (\d+)") == {provision.DEAD_LETTER_RETENTION_S}
    assert said(f"{queue}/main.tf", r"long_poll_seconds\s+= (\d+)") == {provision.LONG_POLL_S}


def test_the_ledger_remembers_longer_than_a_message_can_take_to_come_back() -> None:
    assert default("ledger_retention_seconds") > provision.RETENTION_S + provision.DEAD_LETTER_RETENTION_S


def test_everybody_knows_the_port() -> None:
    port = HttpSettings.model_fields["http_port"].default
    assert said("Dockerfile", r"^EXPOSE (\d+)") == {port}
    assert said("deploy/terraform/modules/service/main.tf", r"^  port\s+= (\d+)") == {port}
    for name in ("prometheus", "prometheus-ecs", "prometheus-cloudmap"):
        assert said(f"deploy/prometheus/{name}.yml", r"\bport: (\d+)") == {port}
    assert load("docker-compose.yml")["services"]["dispatcher"]["expose"] == [str(port)]


def test_health_checks_agree_on_patience() -> None:
    """Dockerfile for compose-less containers, ECS for Fargate: the same command, the same times."""
    (check,) = re.findall(r"healthCheck = \{(.+?)\}\n", (TERRAFORM / "modules/service/main.tf").read_text())
    fields: dict[str, Any] = dict(re.findall(r"(\w+) = (\d+)", check))
    text = (ROOT / "Dockerfile").read_text()
    options: dict[str, Any] = dict(re.findall(r"--([\w-]+)=(\d+)", text[text.index("HEALTHCHECK") :]))
    ecs = [fields[name] for name in ("interval", "timeout", "startPeriod", "retries")]
    assert ecs == [options[name] for name in ("interval", "timeout", "start-period", "retries")]
    (command,) = re.findall(r"^HEALTHCHECK .*? CMD (\[.+\])$", text, re.MULTILINE)
    assert ["CMD", *json.loads(command)] == re.findall(r'"([\w]+)"', re.findall(r"command = \[(.+?)\]", check)[0])


def test_the_user_is_the_same_in_image_and_task() -> None:
    assert said("Dockerfile", r"^USER (\d+):\d+$") == said(
        "deploy/terraform/modules/service/main.tf", r'user\s+= "(\d+):\d+"'
    )


def test_alerts_know_the_thresholds_that_the_daemon_works_by() -> None:
    threshold = default("overload_threshold")
    (backlog,) = said("deploy/prometheus/alerts.rules.yml", r'queue="regional",state="visible"\} > (\d+)')
    assert backlog == 0.8 * threshold  # where low priority stops: above it a queue is nearly full
    (stale,) = said("deploy/prometheus/alerts.rules.yml", r"queue_depth_timestamp_seconds > 0\) > (\d+)")
    assert stale == 2 * default("depth_ttl_seconds")  # from then on the depth counts as unknown
    (stalled,) = said("deploy/prometheus/alerts.rules.yml", r"last_poll_timestamp_seconds > (\d+)")
    assert stalled > 2 * default("poll_wait_seconds")
