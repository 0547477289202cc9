"""Writes docs/reference from the code, so that the two cannot disagree.

.venv/bin/python docs/reference.py            `make docs` does it, and a test compares
"""

import inspect
import json
from collections.abc import Iterator
from pathlib import Path

import click
from prometheus_client import CollectorRegistry
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dispatcher.cli import main as command_line
from dispatcher.model import Region
from dispatcher.pipeline import attributes_of
from dispatcher.policy.decode import GENERATION, Body, decode
from dispatcher.settings import PREFIX, RegionSettings, Settings
from dispatcher.telemetry.metrics import Metrics
from dispatcher.telemetry.probes import Probes

HERE = Path(__file__).parent / "reference"
NOTE = "<!-- written by docs/reference.py from the code: change it there -->\n"


def settings() -> str:
    lines = [
        "# Settings",
        "",
        "Environment variables, or the same keys in a TOML file given with `--config` (with or without the prefix, in any",
        "case); the environment overrides the file. The standard `AWS_…` variables work as in every AWS SDK, the standard",
        "`OTEL_…` variables as in [tracing](../tracing.md). Bad settings end every command with status 2 and a line for",
        "each fault, before anything is contacted. A variable with our prefix that is no setting is named, and ignored.",
        "How to size them: [operations](../operations.md#capacity).",
        "",
        "| variable | default | meaning |",
        "| --- | --- | --- |",
        *(_row(f"{PREFIX}{name.upper()}", field) for name, field in Settings.model_fields.items()),
        "",
        "A Region in `DISPATCHER_REGIONS` is its queue's URL, or an object:",
        "",
        "| field | default | meaning |",
        "| --- | --- | --- |",
        *(_row(name, field) for name, field in RegionSettings.model_fields.items()),
    ]
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise SystemExit(f"{name} has no docstring")
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        default = "required"
    elif value in (None, {}, ""):
        default = "none"
    elif isinstance(value, bool):
        default = f"`{str(value).lower()}`"
    else:
        default = f"`{value}`"
    return f"| `{name}` | {default} | {_words(field.description)} |"


def _words(docstring: str) -> str:
    return " ".join(docstring.split()).replace("None: ", "none: ").replace("False: ", "`false`: ")


def metrics() -> str:
    registry = CollectorRegistry()
    Metrics(registry, home=Region("h"), regions=[Region("r")], policy="-", version="-", revision="-", in_flight_limit=0)
    lines = [
        "# Metrics",
        "",
        "At `/metrics`, in base units. Every label value exists from the start, with zero; no label holds an id.",
        "`target_region` is where work goes; the Region of the task is the scraper's label. Beside these there are the usual",
        "`process_…` series. What to look at first: [operations](../operations.md#what-to-look-at-first).",
        "",
        "| series | type | labels | |",
        "| --- | --- | --- | --- |",
    ]
    for collector in registry._collector_to_names:  # in the order of the catalogue; there is no public way to ask
        (family,) = collector.collect()
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        lines.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(lines)


def commands() -> str:
    lines = [
        "# Commands",
        "",
        "`dispatcher COMMAND`, or `python -m dispatcher COMMAND`. Exit status 0: done; 1: not, and a line on standard error",
        "says why; 2: wrong settings or arguments, and nothing was contacted. `--json` prints the result for programs, on",
        "standard output (where there is none, only that line); progress goes to standard error, and only where somebody looks. Colours are for terminals, and not",
        "with `NO_COLOR`. `dispatcher completion bash` (`zsh`, `fish`) prints a completion.",
    ]
    for path, command in _commands(command_line, ()):
        with click.Context(command, info_name=" ".join(("dispatcher", *path)), terminal_width=100) as context:
            lines += ["", f"## dispatcher {' '.join(path)}", "", "```text", command.get_help(context).rstrip(), "```"]
    return "\n".join(lines)


def _commands(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


def http() -> str:
    lines = [
        "# HTTP",
        "",
        "On `DISPATCHER_HTTP_HOST` and `DISPATCHER_HTTP_PORT`. Nothing here needs a login but the one endpoint that can be",
        "written to: keep the port inside the network ([security](../security.md)).",
        "",
        "| | answer |",
        "| --- | --- |",
    ]
    probes = Probes(list, list, dict, CollectorRegistry(), lambda: None)
    said = ""
    for route in probes.routes():
        doc = " ".join((inspect.getdoc(route.handler) or "").split())
        if not doc:
            raise SystemExit(f"{route.path} has no docstring")
        if doc != said:  # the page's files share theirs
            lines.append(f"| `{route.method} {route.path}` | {doc} |")
        said = doc
    return "\n".join(lines)


def messages() -> str:
    example = {
        "request_id": "req-12345-uuid",
        "model_name": "gpt-l-7b",
        "input_data_url": "s3://bucket/inputs/req-12345.json",
        "callback_sns_topic": "arn:aws:sns:us-east-1:123456789012:inference-results",
        "priority": "high",
        "timestamp": "2025-12-02T10:23:00Z",
        "metadata": {"user_id": "user123", "deadline": "2030-12-02T11:00:00Z"},
    }
    message = decode(json.dumps(example), {})
    ours = attributes_of(message, Region("us-west-2"), "8a64…", 0.0, 1)
    meanings = {
        "dispatcher.request_id": "the body's",
        "dispatcher.region": "where it went",
        "dispatcher.source_message_id": "the SQS message id that it had in the master queue",
        "dispatcher.dispatched_at": "RFC 3339, UTC",
        "dispatcher.attempt": "its receive count in the master queue",
    }
    lines = [
        "# Messages",
        "",
        "A JSON object, UTF-8, at most what SQS takes (1 MiB with its attributes). The body is forwarded byte for byte.",
        "",
        "```json",
        json.dumps(example, indent=2),
        "```",
        "",
        "| field | required | rule |",
        "| --- | --- | --- |",
        *(
            f"| `{name}` | {'yes' if field.is_required() else 'no'} | {' '.join((field.description or '').split())} |"
            for name, field in Body.model_fields.items()
        ),
        "| anything else | no | forwarded untouched |",
        "",
        "A field that is given more than once, `null`, or of another type is a fault; all faults of a body are named at once.",
        "",
        "## Attributes",
        "",
        "The client's own travel on, and so does the X-Ray trace header. These are added where SQS's limits (ten attributes,",
        "1 MiB) leave room, none of the client's is dropped for them, and a client's under the prefix is replaced:",
        "",
        "| attribute | type | |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {attribute.data_type} | {meanings[name]} |" for name, attribute in ours.items()),
        f'| `{GENERATION}` | Number | the one that a sender may set: higher than before means "once more, on purpose" |',
        "",
        "What is rejected goes to the dead-letter queue, body untouched, with the reason in `dispatcher.rejected_because`.",
    ]
    return "\n".join(lines)


PAGES = {"settings": settings, "metrics": metrics, "commands": commands, "http": http, "messages": messages}


def pages() -> dict[Path, str]:
    return {HERE / f"{name}.md": f"{NOTE}{write()}\n" for name, write in PAGES.items()}


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
