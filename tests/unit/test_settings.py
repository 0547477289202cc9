"""Names, defaults, sources, and one clear line per fault."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher.errors import ConfigurationError
from dispatcher.settings import PREFIX, Settings, load, region_of

SQS = "https://sqs.us-east-1.amazonaws.com/123456789012"
REQUIRED = {
    "DISPATCHER_HOME_REGION": "us-east-1",
    "DISPATCHER_MASTER_QUEUE_URL": f"{SQS}/master",
    "DISPATCHER_REGIONS": json.dumps({"us-east-1": f"{SQS}/regional"}),
    "DISPATCHER_LEDGER_TABLE": "ledger",
}
DEFAULTS = {
    "DISPATCHER_DEAD_LETTER_QUEUE_URL": None,  # the master queue's redrive target
    "DISPATCHER_ROUTING_POLICY": "projected-wait",
    "DISPATCHER_LEDGER_BATCHING": True,
    "DISPATCHER_OVERLOAD_THRESHOLD": 5000,
    "DISPATCHER_DEPTH_TTL_SECONDS": 60,
    "DISPATCHER_LEDGER_RETENTION_SECONDS": 1_814_400,
    "DISPATCHER_VISIBILITY_SECONDS": 120,
    "DISPATCHER_CLAIM_LEASE_SECONDS": 90,
    "DISPATCHER_POLL_WAIT_SECONDS": 20,
    "DISPATCHER_DRAIN_TIMEOUT_SECONDS": 100,
    "DISPATCHER_HTTP_HOST": "0.0.0.0",
    "DISPATCHER_HTTP_PORT": 8080,
    "DISPATCHER_LOG_LEVEL": "info",
    "DISPATCHER_LOG_FORMAT": None,  # `console` on a terminal, `json` otherwise
}
OURS: dict[str, Any] = {  # beyond what was asked for
    "DISPATCHER_SHADOW_POLICY": None,
    "DISPATCHER_RESCUE": False,
    "DISPATCHER_FAIR_QUEUES": False,
    "DISPATCHER_INTERRUPTION_QUEUE_URL": None,
    "DISPATCHER_HTTP_TOKEN": None,
    "DISPATCHER_REVISION": "unknown",
    "DISPATCHER_AWS_CLIENT": "lean",
    "DISPATCHER_PROCESSES": 1,
}
CHOSEN = {"DISPATCHER_POLLERS", "DISPATCHER_MAX_IN_FLIGHT"}

SetAll = Callable[..., None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> SetAll:
    """Sets what is required, then what a test names; None removes."""

    def set_all(**changes: str | None) -> None:
        for name, value in {**REQUIRED, **changes}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    set_all()
    return set_all


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "dispatcher.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def value(settings: Settings, variable: str) -> Any:
    return getattr(settings, variable.removeprefix(PREFIX).lower())


def faults(config: Path | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as bad:
        load(config)
    assert all("\n" not in line for line in bad.value.faults)
    return bad.value.faults


def test_the_settings_are_the_contract_s_name_for_name() -> None:
    variables = {PREFIX + name.upper() for name in Settings.model_fields}
    assert variables == REQUIRED.keys() | DEFAULTS.keys() | CHOSEN | OURS.keys()


@pytest.mark.usefixtures("environment")
def test_the_defaults_are_the_contract_s() -> None:
    settings = load()
    assert {variable: value(settings, variable) for variable in DEFAULTS} == DEFAULTS
    assert {variable: value(settings, variable) for variable in OURS} == OURS
    assert settings.pollers >= 1
    assert settings.max_in_flight >= 10


def test_without_any_setting_each_required_one_is_named_on_a_line_of_its_own() -> None:
    lines = faults()
    assert len(lines) == len(REQUIRED)
    assert all(any(line.startswith(variable) for line in lines) for variable in REQUIRED)


def test_a_bare_string_is_the_region_s_queue_url(environment: SetAll) -> None:
    environment(DISPATCHER_REGIONS=json.dumps({"eu-west-1": f"{SQS}/a", "us-west-2": {"queue_url": f"{SQS}/b"}}))
    regions = {str(name): regional for name, regional in load().regions.items()}
    assert {name: regional.queue_url for name, regional in regions.items()} == {
        "eu-west-1": f"{SQS}/a",
        "us-west-2": f"{SQS}/b",
    }
    for regional in regions.values():
        assert (regional.weight, regional.models, regional.overload_threshold) == (1.0, None, None)


def test_a_region_s_own_threshold_comes_before_the_common_one(environment: SetAll) -> None:
    rules = {"queue_url": f"{SQS}/a", "weight": 2.5, "models": ["m"], "overload_threshold": 7}
    environment(
        DISPATCHER_REGIONS=json.dumps({"eu-west-1": rules, "us-west-2": f"{SQS}/b"}),
        DISPATCHER_OVERLOAD_THRESHOLD="40",
    )
    settings = load()
    regions = {str(name): name for name in settings.regions}
    regional = settings.regions[regions["eu-west-1"]]
    assert (regional.weight, regional.models) == (2.5, frozenset({"m"}))
    assert settings.threshold(regions["eu-west-1"]) == 7
    assert settings.threshold(regions["us-west-2"]) == 40


@pytest.mark.parametrize(
    ("variables", "home"),
    [
        ({"DISPATCHER_HOME_REGION": "eu-west-1", "AWS_REGION": "eu-west-2"}, "eu-west-1"),
        ({"AWS_REGION": "eu-west-2", "AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-2"),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3"),
        ({"DISPATCHER_HOME_REGION": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3"),
    ],
)
def test_the_home_region_is_ours_then_the_sdk_s(environment: SetAll, variables: dict[str, str], home: str) -> None:
    environment(**{"DISPATCHER_HOME_REGION": None, **variables})
    assert load().home_region == home


def test_without_any_home_region_both_variables_are_named(environment: SetAll) -> None:
    environment(DISPATCHER_HOME_REGION=None)
    (line,) = faults()
    assert "DISPATCHER_HOME_REGION" in line
    assert "AWS_REGION" in line


@pytest.mark.parametrize("spelled", ["DISPATCHER_{}", "{}"])
def test_a_file_has_the_same_keys_and_the_environment_overrides_it(
    environment: SetAll, toml: Callable[[str], Path], spelled: str
) -> None:
    environment(**dict.fromkeys(REQUIRED, None), DISPATCHER_HTTP_PORT="9000")
    lines = [
        ("HOME_REGION", '"eu-central-1"'),
        ("MASTER_QUEUE_URL", f'"{SQS}/filed"'),
        ("LEDGER_TABLE", '"filed"'),
        ("HTTP_PORT", "9999"),
        ("LEDGER_BATCHING", "false"),
        ("REGIONS", f'{{eu-west-1 = "{SQS}/a", us-west-2 = {{queue_url = "{SQS}/b", weight = 2}}}}'),
    ]
    names = {name: spelled.format(name) if "DISPATCHER" in spelled else name.lower() for name, _ in lines}
    settings = load(toml("\n".join(f"{names[name]} = {said}" for name, said in lines)))
    assert (settings.home_region, settings.ledger_table, settings.ledger_batching) == ("eu-central-1", "filed", False)
    assert settings.http_port == 9000
    assert [regional.weight for regional in settings.regions.values()] == [1.0, 2.0]


def test_the_file_s_home_region_comes_before_the_sdk_s(environment: SetAll, toml: Callable[[str], Path]) -> None:
    environment(DISPATCHER_HOME_REGION=None, AWS_REGION="eu-west-2")
    assert load(toml('DISPATCHER_HOME_REGION = "eu-central-1"')).home_region == "eu-central-1"


@pytest.mark.usefixtures("environment")
def test_regions_in_the_environment_replace_those_of_the_file(toml: Callable[[str], Path]) -> None:
    """Merged, a Region that an operator took out by the environment would go on getting messages."""
    filed = load(toml(f'[DISPATCHER_REGIONS]\neu-west-1 = "{SQS}/withdrawn"\n'))
    assert list(filed.regions) == ["us-east-1"]


def test_one_region_in_the_environment_replaces_the_file_s_altogether(
    environment: SetAll, toml: Callable[[str], Path]
) -> None:
    environment(DISPATCHER_REGIONS=json.dumps({"us-east-1": {"queue_url": f"{SQS}/regional"}}))
    filed = load(toml(f'[DISPATCHER_REGIONS.us-east-1]\nqueue_url = "{SQS}/filed"\nweight = 9.0\nmodels = ["m"]\n'))
    (regional,) = filed.regions.values()
    assert (regional.queue_url, regional.weight, regional.models) == (f"{SQS}/regional", 1.0, None)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("text", ["not toml", "DISPATCHER_NO_SUCH_THING = 1", 'http_port = "many"'])
def test_a_bad_file_is_named_or_its_key_is(toml: Callable[[str], Path], text: str) -> None:
    (line,) = faults(toml(text))
    assert "dispatcher.toml" in line or "DISPATCHER_HTTP_PORT" in line


@pytest.mark.usefixtures("environment")
def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (line,) = faults(tmp_path / "nowhere.toml")
    assert "nowhere.toml" in line


def regions(rules: Any, name: str = "eu-west-1") -> str:
    return json.dumps({name: rules})


@pytest.mark.parametrize(
    ("variable", "bad"),
    [
        ("DISPATCHER_HOME_REGION", "Virginia"),
        ("DISPATCHER_MASTER_QUEUE_URL", "master"),
        ("DISPATCHER_MASTER_QUEUE_URL", "https://host"),
        ("DISPATCHER_MASTER_QUEUE_URL", f"{SQS}/master.fifo"),
        ("DISPATCHER_DEAD_LETTER_QUEUE_URL", "arn:aws:sqs:us-east-1:123456789012:dlq"),
        ("DISPATCHER_REGIONS", "{"),
        ("DISPATCHER_REGIONS", "[]"),
        ("DISPATCHER_REGIONS", "{}"),
        ("DISPATCHER_REGIONS", regions(5)),
        ("DISPATCHER_REGIONS", regions("nowhere")),
        ("DISPATCHER_REGIONS", regions({"weight": 1})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "weight": -1})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "weight": 0})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "wieght": 1})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "models": []})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "models": "m"})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "overload_threshold": 0})),
        ("DISPATCHER_REGIONS", regions(f"{SQS}/a.fifo")),
        ("DISPATCHER_REGIONS", regions(f"{SQS}/master", "us-east-1")),
        ("DISPATCHER_REGIONS", regions(f"{SQS}/a", "")),
        ("DISPATCHER_REGIONS", regions(f"{SQS}/a", "Virginia, please")),
        ("DISPATCHER_ROUTING_POLICY", "random"),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "queues": {"urgent": f"{SQS}/b"}})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "queues": {"high": "b"}})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "queues": {"high": f"{SQS}/master"}}, "us-east-1")),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "drain_per_second": 0})),
        ("DISPATCHER_REGIONS", regions({"queue_url": f"{SQS}/a", "instances": 0})),
        ("DISPATCHER_SHADOW_POLICY", "random"),
        ("DISPATCHER_RESCUE", "sometimes"),
        ("DISPATCHER_FAIR_QUEUES", "no idea"),
        ("DISPATCHER_INTERRUPTION_QUEUE_URL", "warnings"),
        ("DISPATCHER_INTERRUPTION_QUEUE_URL", f"{SQS}/master"),
        ("DISPATCHER_HTTP_TOKEN", "too short"),
        ("DISPATCHER_LEDGER_BATCHING", "perhaps"),
        ("DISPATCHER_OVERLOAD_THRESHOLD", "0"),
        ("DISPATCHER_DEPTH_TTL_SECONDS", "0"),
        ("DISPATCHER_DEPTH_TTL_SECONDS", "nan"),
        ("DISPATCHER_LEDGER_RETENTION_SECONDS", "inf"),
        ("DISPATCHER_VISIBILITY_SECONDS", "43201"),  # SQS: twelve hours at most
        ("DISPATCHER_VISIBILITY_SECONDS", "soon"),
        ("DISPATCHER_CLAIM_LEASE_SECONDS", "-1"),
        ("DISPATCHER_POLL_WAIT_SECONDS", "21"),  # SQS: twenty seconds at most
        ("DISPATCHER_POLLERS", "0"),
        ("DISPATCHER_MAX_IN_FLIGHT", "0"),
        ("DISPATCHER_DRAIN_TIMEOUT_SECONDS", "-1"),
        ("DISPATCHER_HTTP_PORT", "65536"),
        ("DISPATCHER_LOG_LEVEL", "loud"),
        ("DISPATCHER_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_variable(environment: SetAll, variable: str, bad: str) -> None:
    environment(**{variable: bad})
    (line,) = faults()
    assert variable in line


@pytest.mark.parametrize(
    ("variable", "bad", "said"),
    [
        ("HTTP_TOKEN", "too short", "must have 16 characters or more"),
        ("RESCUE", "sometimes", "must be true or false"),
        ("REGIONS", "us-east-1", 'such as {"us-east-1": '),
    ],
)
def test_what_is_wrong_with_a_value_is_said_in_plain_words(
    environment: SetAll, variable: str, bad: str, said: str
) -> None:
    environment(**{f"DISPATCHER_{variable}": bad})
    (line,) = faults()
    assert said in line


def test_a_token_is_never_shown(environment: SetAll) -> None:
    environment(DISPATCHER_HTTP_TOKEN="secret")
    assert not any("secret" in line for line in faults())
    environment(DISPATCHER_HTTP_TOKEN="a-secret-of-some-length")
    settings = load()
    assert "a-secret" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_values_that_do_not_fit_together_are_a_line_each(environment: SetAll) -> None:
    master = "http://localhost:4566/000000000000/master"
    environment(
        DISPATCHER_CLAIM_LEASE_SECONDS="120",
        DISPATCHER_MASTER_QUEUE_URL=master,
        DISPATCHER_DEAD_LETTER_QUEUE_URL=master,
        DISPATCHER_HOME_REGION="eu-west-1",
        DISPATCHER_REGIONS=json.dumps({"eu-west-1": {"queue_url": master, "weight": 0}}),
    )
    assert [line.split(":")[0].split(" (")[0] for line in faults()] == [
        "DISPATCHER_CLAIM_LEASE_SECONDS",
        "DISPATCHER_REGIONS",
        "DISPATCHER_DEAD_LETTER_QUEUE_URL",
        "DISPATCHER_REGIONS",
    ]


@pytest.mark.parametrize("other", ["HTTP_PORT", "REGIONS"])
def test_two_bad_values_are_two_lines(environment: SetAll, other: str) -> None:
    """An operator who corrects one fault per start loses an afternoon."""
    environment(**{"DISPATCHER_LEDGER_TABLE": None, f"DISPATCHER_{other}": "{bad"})
    lines = faults()
    assert sorted(line.partition(":")[0] for line in lines) == sorted(
        ["DISPATCHER_LEDGER_TABLE", f"DISPATCHER_{other}"]
    )


@pytest.mark.parametrize(("lease", "visibility"), [("120", "120"), ("121", "120"), ("90", "60")])
def test_a_lease_that_does_not_end_before_the_visibility_is_refused(
    environment: SetAll, lease: str, visibility: str
) -> None:
    environment(DISPATCHER_CLAIM_LEASE_SECONDS=lease, DISPATCHER_VISIBILITY_SECONDS=visibility)
    (line,) = faults()
    assert "DISPATCHER_CLAIM_LEASE_SECONDS" in line
    assert "DISPATCHER_VISIBILITY_SECONDS" in line


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-west-1.amazonaws.com/123456789012/name", "eu-west-1"),
        ("https://vpce-0123-ab.sqs.eu-west-1.vpce.amazonaws.com/123456789012/name", "eu-west-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/123456789012/name", "cn-north-1"),
        ("https://sqs.eu-west-1.api.aws/123456789012/name", "eu-west-1"),
        ("https://queue.amazonaws.com/123456789012/name", None),
        ("http://sqs.us-east-1.localhost.localstack.cloud:4566/000000000000/name", None),
        ("http://local-stack-1:4566/000000000000/name", None),
    ],
)
def test_the_region_that_a_queue_of_aws_is_in_stands_in_its_url(url: str, region: str | None) -> None:
    assert region_of(url) == region


def test_a_lease_just_below_the_visibility_is_allowed(environment: SetAll) -> None:
    environment(DISPATCHER_CLAIM_LEASE_SECONDS="59.5", DISPATCHER_VISIBILITY_SECONDS="60")
    assert load().claim_lease_seconds == 59.5


def test_a_variable_set_to_nothing_counts_as_not_set(environment: SetAll) -> None:
    """Compose files and task definitions pass empty strings for what nobody filled in."""
    environment(DISPATCHER_HTTP_PORT="", DISPATCHER_DEAD_LETTER_QUEUE_URL="")
    settings = load()
    assert (settings.http_port, settings.dead_letter_queue_url) == (8080, None)


@pytest.mark.usefixtures("environment")
def test_settings_cannot_be_changed_under_way() -> None:
    settings = load()
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, "http_port", 1)  # noqa: B010  mypy knows it too
