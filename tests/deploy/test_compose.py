"""docker-compose.yml: nothing is reachable from outside, nothing may more than it must, and it waits for what it needs.

`make check-deploy` has Compose itself read it, `make compose` starts it where containers run.
"""

import json
from typing import Any

import click
import pytest

from dispatcher.aws.provision import Resources
from dispatcher.cli import main
from dispatcher.model import Region
from dispatcher.settings import Settings
from tests.deploy.conftest import ROOT, load

COMPOSE = load("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if service["image"] == "dispatcher:local"}
every = pytest.mark.parametrize("name", SERVICES)


def test_what_the_readme_promises_is_there() -> None:
    default = {name for name, service in SERVICES.items() if "profiles" not in service}
    assert default == {"aws", "init", "dispatcher", "prometheus", "alertmanager", "grafana"}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["demo"]} == {
        "producer",
        "workers",
    }
    assert SERVICES["dispatcher"]["deploy"]["replicas"] == 2
    assert SERVICES["aws"]["image"] == "${AWS_EMULATOR_IMAGE:-localstack/localstack:4.14.0}"


@every
def test_every_port_is_on_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@every
def test_everything_is_locked_down_but_the_emulator(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name != "aws":
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)
    assert all(volume.endswith(":ro") for volume in service.get("volumes", []))


@every
def test_every_image_has_a_version(name: str) -> None:
    tag = SERVICES[name]["image"].rstrip("}").rpartition(":")[2]
    assert tag != "latest"
    assert tag == "local" or tag.lstrip("v")[0].isdigit()


@every
def test_who_waits_waits_for_something_that_tells(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "test" in SERVICES[needed]["healthcheck"]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert SERVICES[needed]["restart"] == "no"


def test_the_settings_are_what_init_creates(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SERVICES["dispatcher"]["environment"]
    assert all(SERVICES[name]["environment"] == environment for name in OURS)
    url = "http://aws:4566/000000000000/dispatcher"
    regions = {Region(r): f"{url}-regional" for r in ("us-east-1", "us-west-2", "eu-west-1")}  # init's defaults
    made = Resources(Region("us-east-1"), f"{url}-master", f"{url}-master-dlq", regions, "dispatcher-ledger")
    for name, value in made.environment().items():
        said = environment[name]
        assert (json.loads(said) == json.loads(value)) if name == "DISPATCHER_REGIONS" else said == value
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Settings().depth_ttl_seconds == 20


def test_prometheus_looks_where_compose_puts_things() -> None:
    config = load("deploy/prometheus/prometheus.yml")
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert set(found["names"]) <= set(SERVICES)
    assert str(found["port"]) in SERVICES["dispatcher"]["expose"]
    (alertmanager,) = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert alertmanager.split(":")[0] in SERVICES
    assert (ROOT / "deploy/alertmanager/alertmanager.yml").exists()


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_command_is_one_of_ours(name: str) -> None:
    command: Any = main
    for word in SERVICES[name].get("command", []):
        if isinstance(command, click.Group):
            command = command.commands[word]
        elif word.startswith("--"):
            assert word in {option for parameter in command.params for option in parameter.opts}


def test_whoever_looks_at_grafana_may_look_and_no_more() -> None:
    said = SERVICES["grafana"]["environment"]
    assert said["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert said["GF_AUTH_BASIC_ENABLED"] == "false"
    assert said["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"


@every
def test_everything_mounted_is_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        assert (ROOT / volume.split(":")[0]).is_dir()
    for word in SERVICES[name].get("command", []):
        if word.startswith("--config.file="):
            mounted = dict(volume.removesuffix(":ro").split(":")[::-1] for volume in SERVICES[name]["volumes"])
            folder, _, file = word.removeprefix("--config.file=").rpartition("/")
            assert (ROOT / mounted[folder] / file).is_file()
