"""What an operator may set. Frozen; numbers that must agree are checked together, before anything is
contacted. Everything else that could be a setting and that nobody would turn is a constant beside its use.
"""

import importlib
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from dispatcher.errors import ConfigurationError
from dispatcher.model import AwsClient, Policy, Priority, Region

PREFIX = "DISPATCHER_"
TRACES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EMULATOR = "DISPATCHER_EMULATOR"
"""No setting of the daemon: the command of the emulator that the demo starts."""

_QUEUE_URL = re.compile(r"https?://[^/\s]+/\S*[A-Za-z0-9_-]+")


def _queue_url(value: Any) -> Any:
    if not isinstance(value, str) or not _QUEUE_URL.fullmatch(value):
        raise ValueError(
            "must be the URL of an SQS queue, such as https://sqs.us-east-1.amazonaws.com/123456789012/name"
        )
    if value.endswith(".fifo"):
        raise ValueError("must be a standard queue, not FIFO")
    return value


def is_aws(url: str) -> bool:
    """Whether a queue's URL or an endpoint is AWS's own, and not an emulator's."""
    host = urlsplit(url).hostname or ""
    return any(
        host == domain or host.endswith(f".{domain}") for domain in ("amazonaws.com", "amazonaws.com.cn", "api.aws")
    )


QueueUrl = Annotated[str, BeforeValidator(_queue_url)]
_REGION = re.compile(r"[a-z]{2,}(-[a-z]+)+-\d+")


def region_name(value: Any) -> Any:
    """Return the value if it looks like an AWS Region's name; raise ValueError."""
    if not isinstance(value, str) or not _REGION.fullmatch(value):
        raise ValueError(f"{value!r} is not the name of an AWS Region, such as us-east-1")
    return value


def region_of(queue_url: str) -> str | None:
    """The Region that the host of one of AWS's own queue URLs names; None if it names none."""
    labels = (urlsplit(queue_url).hostname or "").split(".") if is_aws(queue_url) else []
    return next((label for label in labels if _REGION.fullmatch(label)), None)


RegionName = Annotated[Region, BeforeValidator(region_name)]
Name = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RegionSettings(BaseModel):
    """One Region that receives messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    queue_url: QueueUrl
    """Where its messages go."""
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Static preference: twice the weight, twice the share, other things equal. 0: no messages."""
    models: Annotated[frozenset[Name], Field(min_length=1)] | None = None
    """The models that it serves; None: all of them."""
    overload_threshold: Annotated[int, Field(gt=0)] | None = None
    """Visible messages at which it gets no more; None: DISPATCHER_OVERLOAD_THRESHOLD."""
    queues: dict[Priority, QueueUrl] = Field(default_factory=dict)
    """Queues of their own for some priorities; `queue_url` is for the others."""
    drain_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Messages that its workers take per second: believed until it was observed. None: like the other Regions."""
    instances: Annotated[int, Field(ge=1)] = 10
    """Spot instances that it has as a rule: a notice of one interruption takes one of them."""

    def serves(self, model: str) -> bool:
        return self.models is None or model in self.models

    @property
    def queue_urls(self) -> list[str]:
        return list(dict.fromkeys([self.queue_url, *self.queues.values()]))


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as fault:
        raise ValueError(f'must be JSON, such as {{"us-east-1": "URL of its queue"}}: {fault}') from fault


def _region(value: Any) -> Any:
    return {"queue_url": value} if isinstance(value, str) else value


class HttpSettings(BaseSettings):
    """Where the endpoints are; all that `dispatcher healthcheck` needs."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    http_host: Name = "0.0.0.0"  # noqa: S104  a container's port is published on purpose
    """Address of the endpoints."""
    http_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Their port; 0: the system's choice, which the log tells."""


class Settings(HttpSettings):
    home_region: RegionName
    """Region of the master queue and of the ledger's table. Default: AWS_REGION, then AWS_DEFAULT_REGION."""
    master_queue_url: QueueUrl
    """Where clients' requests come from."""
    regions: Annotated[
        dict[RegionName, Annotated[RegionSettings, BeforeValidator(_region)]],
        NoDecode,
        BeforeValidator(_json),
        Field(min_length=1),
    ]
    """JSON: each Region's queue URL, or an object of the fields below."""
    ledger_table: Name
    """DynamoDB table with partition key `request_id` (string) and TTL on `expires_at`."""
    dead_letter_queue_url: QueueUrl | None = None
    """Where rejected messages go; None: the master queue's redrive target."""
    routing_policy: Policy = Policy.PROJECTED_WAIT
    """`projected-wait`, `inverse-depth` (the original), `inverse-depth-smoothed`, `two-choices` or `fixed`."""
    shadow_policy: Policy | None = None
    """Another policy, whose choices are only compared: nothing is sent by them."""
    rescue: bool = False
    """Move messages that wait in a stalled or withdrawn Region's queue to other Regions."""
    fair_queues: bool = False
    """Forward `metadata.user_id` as the MessageGroupId: SQS keeps one tenant from delaying the others."""
    interruption_queue_url: QueueUrl | None = None
    """A queue in the home Region that EventBridge's Spot interruption warnings go to; None: nobody tells."""
    http_token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Whoever shows it (`Authorization: Bearer …`) may report capacity; None: nobody may."""
    ledger_batching: bool = True
    """PartiQL batches; False: one conditional write for each claim and confirmation."""
    overload_threshold: Annotated[int, Field(gt=0)] = 5000
    """Visible messages at which a regional queue gets no more."""
    depth_ttl_seconds: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 60
    """Age past which a depth reading is stale; four readings fall within it."""
    ledger_retention_seconds: Annotated[Seconds, Field(le=100 * 366 * 86400)] = 21 * 86400
    """How long a dispatched request is remembered: master retention + dead-letter retention + margin."""
    visibility_seconds: Annotated[int, Field(ge=1, le=43200)] = 120
    """Asked for with each receive, extended while a message is held: how soon a dead dispatcher's messages return."""
    claim_lease_seconds: Seconds = 90
    """How long a dead dispatcher's claim holds its request. Less than the visibility; a third of it bounds a send."""
    aws_client: AwsClient = AwsClient.LEAN
    """`sdk`, or `lean`: the six calls that are made for messages cost less processor time. Others are the SDK's."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Dispatchers under one supervisor, for a task of several vCPUs; the limits below are of each."""
    poll_wait_seconds: Annotated[int, Field(ge=0, le=20)] = 20
    """Long-poll wait. A drain lasts at least this long when the queue is empty."""
    pollers: Annotated[int, Field(ge=1, le=100)] = 8
    """Concurrent long polls: 8 full ones of 20 ms carry 4,000 messages/s, about what one vCPU can."""
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] = 1000
    """Messages held at once; with their bodies, and those bounded too (`inflight.py`), within 512 MiB."""
    drain_timeout_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 100
    """From SIGTERM or SIGINT until what is unfinished is handed back."""
    revision: Name = "unknown"
    """Of the code that runs, for `dispatcher_build_info`."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = "info"
    """`debug`, `info`, `warning` or `error`."""
    log_format: Annotated[Literal["json", "console"], BeforeValidator(_lower)] | None = None
    """`json` or `console`; None: console on a terminal, JSON otherwise."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings  # the environment overrides the file, which arrives as arguments

    @model_validator(mode="before")
    @classmethod
    def _home_is_the_sdk_s_region(cls, values: dict[str, Any]) -> dict[str, Any]:
        home = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return {"home_region": home, **values} if home else values

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if faults := list(self._misfits()):
            raise ValueError("\n".join(faults))
        return self

    def _misfits(self) -> Iterator[str]:
        if self.claim_lease_seconds >= self.visibility_seconds:
            yield (
                f"DISPATCHER_CLAIM_LEASE_SECONDS ({self.claim_lease_seconds:g}) must be less than "
                f"DISPATCHER_VISIBILITY_SECONDS ({self.visibility_seconds}), or a message returns while its claim lives"
            )
        master = (self.home_region, self.master_queue_url)
        regional_urls = [(region, url) for region, regional in self.regions.items() for url in regional.queue_urls]
        if master in regional_urls:
            yield "DISPATCHER_REGIONS: the master queue cannot be a regional queue too"
        if (self.home_region, self.dead_letter_queue_url) in [master, *regional_urls]:
            yield "DISPATCHER_DEAD_LETTER_QUEUE_URL: must be a queue of its own"
        others = [master, *regional_urls, (self.home_region, self.dead_letter_queue_url)]
        if self.interruption_queue_url and (self.home_region, self.interruption_queue_url) in others:
            yield "DISPATCHER_INTERRUPTION_QUEUE_URL: must be a queue of its own"
        if not any(regional.weight > 0 for regional in self.regions.values()):
            yield "DISPATCHER_REGIONS: at least one Region needs a weight above 0"

    def threshold(self, region: Region) -> int:
        return self.regions[region].overload_threshold or self.overload_threshold


def load(config: Path | None = None) -> Settings:
    """Return the settings of the environment over those of the TOML file `config`; raise ConfigurationError."""
    return _load(Settings, config)


def load_http(config: Path | None = None) -> HttpSettings:
    """Return where the endpoints are, from the same places; raise ConfigurationError."""
    return _load(HttpSettings, config)


def _load[S: HttpSettings](kind: type[S], config: Path | None) -> S:
    try:
        in_file = (
            {} if config is None else {_key(key): value for key, value in tomllib.loads(config.read_text()).items()}
        )
    except OSError as fault:
        raise ConfigurationError([f"{config}: cannot be read: {fault.strerror}"]) from fault
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
        raise ConfigurationError([f"{config}: is no TOML: {fault}"]) from fault
    unknown = sorted(set(in_file) - set(Settings.model_fields))
    faults = [f"{config}: {PREFIX}{key.upper()} is not a setting" for key in unknown]
    # a variable replaces the file's value whole; the library would merge the two mappings of Regions
    in_file = {key: value for key, value in in_file.items() if not os.environ.get(PREFIX + key.upper())}
    try:
        settings = kind(**in_file)
    except ValidationError as invalid:
        lines = [line for error in invalid.errors(include_url=False) for line in _line(error).splitlines()]
        raise ConfigurationError([*faults, *lines]) from invalid
    if faults:
        raise ConfigurationError(faults)
    return settings


def _key(name: str) -> str:
    return name.lower().removeprefix(PREFIX.lower())


def _line(error: Any) -> str:
    said = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(said)
    field, *inside = (str(part) for part in error["loc"] if part != "[key]")
    where = PREFIX + field.upper() + "".join(f"[{part}]" for part in inside)
    if error["type"] == "missing":
        hint = " (or AWS_REGION)" if field == "home_region" else ""
        return f"{where}{hint}: is required and not set"
    if error["type"] == "extra_forbidden":
        return f"{where}: is not known; a Region has {', '.join(RegionSettings.model_fields)}"
    if error["type"] in ("bool_parsing", "bool_type"):
        return f"{where}: must be true or false"
    if error["type"] == "too_short" and field == "http_token":
        return f"{where}: must have {error['ctx']['min_length']} characters or more"
    return f"{where}: {said}"


def traces_wanted() -> bool:
    """Return whether the standard OTEL_… variables ask for traces; raise ConfigurationError if they cannot be had."""
    asked = [name for name in TRACES if os.environ.get(name)]
    if not asked or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    faults = [
        f"{name}: only http/protobuf is spoken (a collector's port 4318)"
        for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        if os.environ.get(name, "http/protobuf") != "http/protobuf"
    ]
    try:
        importlib.import_module("opentelemetry.sdk.trace")
        importlib.import_module("opentelemetry.exporter.otlp.proto.http")
    except ImportError:
        faults.append(f"{asked[0]}: is set, but OpenTelemetry is not there: pip install 'regional-dispatcher[tracing]'")
    if faults:
        raise ConfigurationError(faults)
    return True


def unknown_variables() -> list[str]:
    """Return the variables under our prefix that are no settings: misspelt, most likely."""
    known = {PREFIX + field.upper() for field in Settings.model_fields} | {EMULATOR}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
