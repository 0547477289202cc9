"""Commands: read arguments, call what does the work, print, return an exit status. Nothing is decided here."""

import asyncio
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import click
from rich.console import Console
from rich.progress import Progress, TaskID

from dispatcher import __version__
from dispatcher.errors import AwsError, ConfigurationError, DispatcherError, PoisonError
from dispatcher.policy.decode import REQUEST_ID_MAX, is_request_id
from dispatcher.policy.life import life, readable
from dispatcher.policy.printable import printable
from dispatcher.settings import HttpSettings, Settings, load, load_http, region_name, traces_wanted, unknown_variables

BAD_CONFIGURATION = 2
HEALTHCHECK_S = 3.0
FAULTS_SHOWN = 20
PATIENCE_S = 1.0
PIECE = 65536
WIDTH = 110  # of lines that go to a file

_config = click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML file with the same keys; the environment overrides it.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dispatcher")
@click.pass_context
def main(context: click.Context) -> None:
    """Put each asynchronous GPU-inference request, once, on the queue of the AWS Region that will serve it soonest.

    Settings come from DISPATCHER_… variables, or from a TOML file given with --config. Exit status 0: done; 1: not, and
    one line on standard error says why; 2: wrong settings or arguments, and nothing was contacted.

    \b
    Example: dispatcher demo
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


@main.command()
@_config
def run(config: Path | None) -> None:
    """Run the daemon. SIGTERM or SIGINT drains it; a second one stops it at once.

    \b
    Example: DISPATCHER_HTTP_PORT=9000 dispatcher run --config dispatcher.toml
    """
    settings = _loaded(load, config)
    traced = _loaded(lambda _: traces_wanted(), None)
    _name_unknown()
    import uvloop

    from dispatcher.telemetry import logs

    logs.configure(settings.log_level, settings.log_format)
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        logs.sign(pid=os.getpid())  # one of several, which write to one log
    try:
        if settings.processes > 1:
            sys.exit(uvloop.run(_supervise(settings, config)))
        from dispatcher import app

        uvloop.run(app.run(settings, traced=traced))
    except DispatcherError as fault:
        _fail(_said(fault))
    except Exception:
        logs.log.exception("process.failed")
        sys.exit(1)


@main.command(short_help="Show the whole system at work on this machine.")
@click.option("--requests", "messages", type=click.IntRange(min=1), default=2000, show_default=True, help="To send.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed sends the same messages.")
@_json
def demo(messages: int, seed: int, as_json: bool) -> None:
    """Show the whole system on this machine: emulated AWS, three Regions with GPU workers, one Spot interruption.

    \b
    Example: dispatcher demo --requests 500
    """
    from dispatcher.demo import cloud, show

    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else WIDTH)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        summary = asyncio.run(show.demo(messages, seed, console))
    except cloud.NoEmulatorError as fault:
        _fail(str(fault))
    if as_json:
        _print_json(summary)
    else:
        console.print(show.report(summary))
    sys.exit(0 if summary["ok"] else 1)


@main.command()
@_config
@_json
def healthcheck(config: Path | None, as_json: bool) -> None:
    """Ask the local /healthz; exit status 0: healthy, 1: not. For container health checks.

    \b
    Example: dispatcher healthcheck
    """
    settings: HttpSettings = _loaded(load_http, config, status=1)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.http_host, settings.http_host)  # noqa: S104  not bound
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.http_port}/healthz"
    healthy = False
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=HEALTHCHECK_S) as answer:
            healthy, said = True, f"answered {answer.status}"
    except HTTPError as unwell:
        said = f"answered {unwell.code}: {unwell.read().decode(errors='replace')}"
    except OSError as fault:
        said = f"does not answer: {getattr(fault, 'reason', fault)}"
    except HTTPException as fault:
        said = f"does not answer in HTTP: {fault!r}"
    if as_json:
        _print_json({"healthy": healthy, "url": url, "detail": said})
    elif healthy:
        click.echo(f"healthy: {url} {said}")
    else:
        _fail(f"unhealthy: {url} {said}")
    sys.exit(0 if healthy else 1)


@main.command(short_help="Create queues and table on an emulator; print the settings.")
@click.option("--name", default="dispatcher", show_default=True, help="Every name created begins with it.")
@click.option("--home-region", default="us-east-1", show_default=True, help="Of the master queue and the table.")
@click.option("--regions", default="us-east-1,us-west-2,eu-west-1", show_default=True, help="Separated by commas.")
@click.option("--yes", is_flag=True, help="Create on AWS itself, too.")
@_json
def init(name: str, home_region: str, regions: str, yes: bool, as_json: bool) -> None:
    """Create queues, dead-letter queues and table on an emulator, and print the settings to use. Idempotent.

    \b
    Example: eval "$(dispatcher init --regions us-east-1,eu-west-1)"
    """
    from dispatcher.aws.provision import Resources, provision
    from dispatcher.model import Region

    async def create(clients: Any) -> Resources | None:
        made = None
        async for step in provision(clients, name=name, home=Region(home_region), regions=wanted, on_aws=yes):
            if isinstance(step, Resources):
                made = step
            else:
                click.echo(step, err=True)
        return made

    wanted = [Region(region.strip()) for region in regions.split(",") if region.strip()]
    try:
        for region in (home_region, *wanted):
            region_name(region)
    except ValueError as fault:
        raise click.UsageError(str(fault)) from fault
    if not wanted:
        raise click.UsageError("--regions: name at least one")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
        raise click.UsageError("--name: up to 60 letters, digits, - and _")
    made = _with_clients(create)
    if made is None:
        _fail("nothing was created")
    if as_json:
        _print_json(made.environment())
    else:
        for variable, value in made.environment().items():
            click.echo(f"export {variable}='{value}'")


@main.command(short_help="Look at every resource and say what to do; changes nothing.")
@_config
@_json
def check(config: Path | None, as_json: bool) -> None:
    """Look at every resource: is it there, may it be used, do its settings fit? Says what to do; changes nothing.

    \b
    Example: dispatcher check --config dispatcher.toml
    """
    from dispatcher.commands.check import Finding, Level
    from dispatcher.commands.check import check as look

    settings = _loaded(load, config)
    _name_unknown()

    async def all_of_it(clients: Any) -> list[Finding]:
        findings = []
        async for finding in look(settings, clients):
            findings.append(finding)
            if not as_json:
                mark = click.style(f"{finding.level:4}", fg=colours[finding.level])
                todo = f"; {finding.todo}" if finding.todo else ""
                click.echo(f"{mark} {finding.what}: {printable(finding.detail)}{todo}")
        return findings

    colours = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
    findings = _with_clients(all_of_it, patience="asking AWS, all resources at once …")
    if as_json:
        _print_json(
            [
                {"ok": f.ok, "level": f.level.lower(), "what": f.what, "detail": f.detail, "todo": f.todo}
                for f in findings
            ]
        )
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


@main.command(short_help="Validate requests and send them to the master queue.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True, exists=True), required=False)
@click.option("--count", type=click.IntRange(min=1), help="Send that many made-up requests instead of a file.")
@click.option("--again", is_flag=True, help="Dispatch requests that were dispatched before once more, on purpose.")
@click.option(
    "--journal",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where it is written down what was sent.  [default: FILE.sent; none for standard input]",
)
@_config
@_json
def submit(
    file: Path | None, count: int | None, again: bool, journal: Path | None, config: Path | None, as_json: bool
) -> None:
    """Validate requests and send them to the master queue: one JSON object a line, from FILE or - (standard input).

    Nothing is sent unless every line is valid. When it was cut off, or some could not be sent, the same command sends
    the rest: what was sent is in the journal, which is removed at the end.

    \b
    Example: dispatcher submit requests.jsonl
    Example: generate | dispatcher submit - --journal today.sent
    """
    from dispatcher.commands import submit as submission
    from dispatcher.commands.advice import explained

    settings = _loaded(load, config)
    if file is None and count is None:
        raise click.UsageError("say what to send: FILE, - for standard input, or --count N")
    if file is not None and count is not None:
        raise click.UsageError("FILE and --count exclude each other")
    if journal and count:
        raise click.UsageError("--journal is for a FILE or standard input")
    if file and journal and journal.exists() and str(file) != "-" and journal.samefile(file):
        raise click.UsageError("--journal: is the FILE itself")
    if journal is None and file is not None and file.is_file():
        journal = file.with_name(f"{file.name}.sent")
    written = _loaded(lambda _: submission.Journal(journal, settings.master_queue_url, again), None)
    sent = left_out = 0
    unwritten = ""
    with _lines(file) as lines, _progress() as progress:
        if file is None:
            total = count or 0
            bodies: Iterable[tuple[int, str]] = enumerate(submission.made_up(total), 1)
        else:
            total, left_out = _validated(submission.requests(lines), written, progress)
            lines.seek(0)
            still = written.new()
            bodies = ((number, body) for number, body in submission.requests(lines) if still(body))
        bar = progress.add_task("sending", total=total - left_out)
        try:
            with written.writing() as write:

                def was_sent(body: str) -> None:
                    nonlocal sent, unwritten
                    sent += 1
                    progress.advance(bar)
                    try:
                        write(body)
                    except OSError as fault:
                        unwritten = fault.strerror or str(fault)

                failed = _with_clients(
                    lambda clients: submission.submit(
                        settings, clients, bodies, generation=written.generation, sent=was_sent
                    )
                )
        except ConfigurationError as fault:
            _fail(str(fault))
        except KeyboardInterrupt:
            rest = "; the same command sends the rest" if journal else ""
            _fail(f"ended early: {sent} of {total - left_out} were sent{rest}")
    if not failed:
        written.finish()
    alike: dict[str, list[int]] = {}
    for number, refusal in failed:
        why = explained(refusal, f"the master queue {settings.master_queue_url}", "DISPATCHER_MASTER_QUEUE_URL")
        alike.setdefault(why, []).append(number)
    for why, numbers in list(alike.items())[:FAULTS_SHOWN]:
        click.echo(f"dispatcher: {_listed(numbers)}: {why}", err=True)
    if unwritten:
        click.echo(f"dispatcher: the journal {journal} could not be written ({unwritten}): it lacks some", err=True)
    if as_json:
        _print_json({"sent": sent, "sent_before": left_out, "failed": len(failed)})
    else:
        before = f" ({left_out} were sent before)" if left_out else ""
        click.echo(f"sent {sent} of {total - left_out} requests{before}")
    sys.exit(1 if failed else 0)


@contextmanager
def _lines(file: Path | None) -> Iterator[Any]:
    """Give the lines of a file; of what is none, a pipe or standard input, a copy: they are read twice."""
    try:
        plain = file is not None and file.is_file()
        source: Any = file.open("rb") if file and plain else tempfile.TemporaryFile()  # noqa: SIM115  closed below
        if file is not None and not plain:
            if str(file) == "-" and sys.stdin.isatty():
                _say("dispatcher: type one JSON object a line; Ctrl-D ends them")
            pipe: Any = sys.stdin.buffer if str(file) == "-" else file.open("rb")
            with pipe:
                source.writelines(iter(partial(pipe.read1, PIECE), b""))  # one Ctrl-D ends it; read would want two
            source.seek(0)
    except OSError as fault:
        _fail(f"{file}: {fault.strerror or fault}")
    with source:
        try:
            yield io.TextIOWrapper(source, encoding="utf-8-sig", errors="strict", newline="\n")
        except UnicodeDecodeError as wrong:
            _fail(f"{file} is not UTF-8: {wrong}; nothing was sent")


def _validated(requests: Iterable[tuple[int, str]], written: Any, progress: Progress) -> tuple[int, int]:
    """Return how many requests there are, and how many of them were sent; if one is faulty, say which, and end."""
    from dispatcher.commands import submit as submission

    bar = progress.add_task("validating", total=None)
    total = left_out = 0
    faults: list[str] = []
    twins: list[str] = []
    first: dict[str, int] = {}
    still = written.new()
    for number, body in requests:
        total += 1
        left_out += not still(body)
        progress.advance(bar)
        try:
            before = first.setdefault(submission.request_id(body, written.generation), number)
        except PoisonError as poison:
            faults.append(f"line {number}: {poison.reason}")
            continue
        if before != number:
            twins.append(f"line {number}: has the request_id of line {before}: it will be dropped as a duplicate")
    progress.remove_task(bar)
    for twin in twins[:FAULTS_SHOWN]:
        click.echo(f"dispatcher: {twin}", err=True)
    for fault in faults[:FAULTS_SHOWN]:
        click.echo(f"dispatcher: {fault}", err=True)
    if faults:
        more = f" ({len(faults) - FAULTS_SHOWN} more are not shown)" if len(faults) > FAULTS_SHOWN else ""
        how = "; each line must be one JSON object" if any("JSON" in fault for fault in faults) else ""
        _fail(f"{len(faults)} of {total} requests are not valid{more}; none was sent{how}")
    return total, left_out


@main.command(short_help="Show every Region's depth and health, or one request.")
@click.argument("request_id", required=False)
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--every", "every_s", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds.")
@_config
@_json
def status(request_id: str | None, watch: bool, every_s: float, config: Path | None, as_json: bool) -> None:
    """Show depth, weight and health of every Region; or, with REQUEST_ID, where that request is.

    It reads AWS itself and needs no daemon, so it knows what a dispatcher knows that starts now: what workers take, and
    that they take nothing, shows only after a while of --watch, or on the page of a daemon. With --json, --watch prints
    a line of JSON each time.

    \b
    Example: dispatcher status --watch
    Example: dispatcher status req-4be6d9a1
    """
    from dispatcher.commands.advice import naming
    from dispatcher.commands.status import Look

    settings = _loaded(load, config)
    if request_id is not None and not is_request_id(request_id):
        raise click.UsageError(f"a request id has 1 to {REQUEST_ID_MAX} printable characters")

    async def show(clients: Any) -> bool:
        look = await Look.open(settings, clients)
        while True:
            try:
                if request_id is not None:
                    with naming(f"the table {settings.ledger_table}", "DISPATCHER_LEDGER_TABLE"):
                        item = await look.request(request_id)
                    known = _show_request(request_id, item, as_json, watch)
                else:
                    known = _show_regions(settings, await look.regions(), as_json, watch)
            except DispatcherError as fault:
                if not watch:
                    raise
                _say(f"dispatcher: {_said(fault)}")
                known = False
            if not watch:
                return known
            await asyncio.sleep(every_s)

    try:
        known = _with_clients(show, patience="asking AWS …")
    except KeyboardInterrupt:
        if not watch:
            raise
        known = True
    sys.exit(0 if known else 1)


def _show_request(request_id: str, item: Mapping[str, str] | None, as_json: bool, watch: bool) -> bool:
    if item is None:
        said = f"the ledger knows no request {request_id!r}: not received yet, rejected unclaimed, or forgotten"
        if not watch:
            _fail(said)
        click.echo(said, err=True)
        return False
    if as_json:
        _print_json(readable(item), one_line=watch)
        return True
    _clear(watch)
    click.echo(f"{printable(request_id)}: {item.get('state', '?')}")
    for at, what in life(item):
        click.echo(f"{at:24}  {printable(what)}")
    _print_table([["", name, printable(value)] for name, value in readable(item).items()])
    return True


_COLUMNS = {
    "depth": "depth", "in_flight": "in flight", "projected_depth": "projected", "drain_per_second": "drain/s",
    "projected_wait_seconds": "wait s", "capacity": "capacity", "weight": "weight", "share": "share",
    "threshold": "threshold", "budget": "budget", "health": "health",
}  # fmt: skip


def _show_regions(settings: Settings, regions: Mapping[str, Mapping[str, Any]], as_json: bool, watch: bool) -> bool:
    if as_json:
        _print_json({"policy": settings.routing_policy, "regions": regions}, one_line=watch)
    else:
        _clear(watch)
        rows = [
            [region, *("-" if values[c] is None else str(values[c]) for c in _COLUMNS)]
            for region, values in regions.items()
        ]
        _print_table(rows, ["Region", *_COLUMNS.values()])
        for region, values in regions.items():
            if values["health"] != "fresh":
                click.echo(f"{region}: {printable(values['reason'])}")
    return any(values["depth"] is not None for values in regions.values())


def _clear(watch: bool) -> None:
    """Before the next picture: on a terminal in place of the last one, elsewhere below it."""
    if watch and sys.stdout.isatty():
        click.clear()
    if watch:
        click.echo(datetime.now().astimezone().isoformat(timespec="seconds"))


@main.group(short_help="Look into the dead-letter queue; send back, or drop.")
def dlq() -> None:
    """Look into the master queue's dead-letter queue; send messages back, or drop them."""


EMPTY = "the dead-letter queue is empty"


def _some_text(_: click.Context, option: click.Parameter, value: Any) -> Any:
    """An empty shell variable must not mean all messages, nor none."""
    if value == "" or (isinstance(value, tuple) and "" in value):
        raise click.BadParameter("is empty; leave the option out to mean every message")
    return value


_reason = click.option("--reason", callback=_some_text, help="Only those whose reason contains this text.")
_ids = click.option(
    "--id", "request_ids", multiple=True, callback=_some_text, help="Only this request's; may be repeated."
)


@dlq.command("list", short_help="List the messages, oldest first, and why they are there.")
@_reason
@_ids
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="At most so many.")
@_config
@_json
def dlq_list(reason: str | None, request_ids: tuple[str, ...], limit: int, config: Path | None, as_json: bool) -> None:
    """List the messages, oldest first: age, receives (each look is one), request id, and why they are there.

    \b
    Example: dispatcher dlq list --reason model_name
    """
    from dispatcher.commands import dlq as letters

    wanted = letters.Wanted(reason or "", frozenset(request_ids))

    async def look(clients: Any, seen: Callable[[int, int], None]) -> Any:
        async with letters.opened(settings, clients) as mailbox:
            found = await letters.look(mailbox, wanted, most=limit, seen=partial(seen, mailbox.size))
            return found, mailbox.size

    settings = _loaded(load, config)
    found, size = _sweeping("looking", look)
    if as_json:
        _print_json([letter.values for letter in found])
        return
    if found:
        rows = []
        for one in found:
            request_id, message_id = printable(one.request_id or "-"), one.delivery.message_id
            rows.append([_age(one.age_s), str(one.delivery.receives), request_id, message_id, printable(one.reason)])
        _print_table(rows, ["age", "receives", "request id", "message id", "reason"])
    more = f", as many as --limit allows of about {size}" if len(found) == limit else ""
    click.echo(f"{_counted(len(found), 'message')}{more}" if found or size else EMPTY, err=True)


@dlq.command("redrive", short_help="Send messages back that were not dispatched.")
@_reason
@_ids
@click.option("--all", "everything", is_flag=True, help="Every message; the same as saying none of the others.")
@click.option("--again", is_flag=True, help="Also what was dispatched before: once more, on purpose.")
@click.option("--rate", type=click.FloatRange(min=0.1), default=50.0, show_default=True, help="Messages a second.")
@_config
@_json
def dlq_redrive(
    reason: str | None,
    request_ids: tuple[str, ...],
    everything: bool,
    again: bool,
    rate: float,
    config: Path | None,
    as_json: bool,
) -> None:
    """Send messages back to the master queue, unless the ledger says that their request was dispatched.

    What was dispatched is dropped; what would be rejected again stays. It may be killed and started again at any time
    (with --again, what was sent last may then be dispatched once more).

    \b
    Example: dispatcher dlq redrive --reason 'received too often' --rate 20
    """
    from dispatcher.commands import dlq as letters

    wanted = letters.Wanted(reason or "", frozenset(request_ids))

    async def send_back(clients: Any, seen: Callable[[int, int], None]) -> Any:
        async with letters.redriving(settings, clients, wanted, again=again, per_second=rate) as redrive:
            under_way.append(redrive)
            await redrive.run(partial(seen, redrive.mailbox.size))

    under_way: list[letters.Redrive] = []
    if not math.isfinite(rate):
        raise click.UsageError("--rate: must be a finite number of messages a second")
    if everything and (reason or request_ids):
        raise click.UsageError("--all is every message: leave out --reason and --id, or --all")
    settings = _loaded(load, config)
    fates, faults, cut_off = Counter[letters.Fate](), [], False
    try:
        _sweeping("redriving", send_back)
    except KeyboardInterrupt:
        cut_off = True
    for redrive in under_way:
        fates, faults = redrive.fates, redrive.faults
    for fault in list(dict.fromkeys(faults))[:3]:
        click.echo(f"dispatcher: {fault}", err=True)
    if as_json:
        _print_json({fate.value: fates[fate] for fate in letters.Fate})
    else:
        for fate in letters.Fate:
            if fates[fate]:
                click.echo(f"{fates[fate]} {letters.MEANING[fate]}")
        if not fates and not faults:
            click.echo(EMPTY)
        if fates and fates.total() == fates[letters.Fate.NOT_MEANT]:
            click.echo("no message has that id or reason")
    if cut_off:
        click.echo("dispatcher: ended early; run it again for the rest", err=True)
    sys.exit(1 if faults or cut_off else 0)


@dlq.command("purge")
@_reason
@_ids
@click.option("--yes", is_flag=True, help="Do not ask.")
@_config
@_json
def dlq_purge(reason: str | None, request_ids: tuple[str, ...], yes: bool, config: Path | None, as_json: bool) -> None:
    """Drop messages for ever. Asks first, with their number.

    \b
    Example: dispatcher dlq purge --reason 'body is not JSON'
    """
    from dispatcher.commands import dlq as letters

    wanted = letters.Wanted(reason or "", frozenset(request_ids))

    async def look(clients: Any, seen: Callable[[int, int], None]) -> Any:
        async with letters.opened(settings, clients) as mailbox:
            return await letters.look(mailbox, wanted, most=sys.maxsize, seen=partial(seen, mailbox.size))

    async def drop(clients: Any, seen: Callable[[int, int], None]) -> Any:
        async with letters.opened(settings, clients) as mailbox:
            return await letters.purge(mailbox, found, partial(seen, len(found)))

    settings = _loaded(load, config)
    found = _sweeping("looking", look)
    question = f"Drop {_counted(len(found), 'message')} of the dead-letter queue for ever?"
    if found and not yes and not click.confirm(question, err=True):
        _fail("nothing was dropped")
    gone = _sweeping("dropping", drop) if found else 0
    if as_json:
        _print_json({"purged": gone, "meant": len(found)})
    else:
        click.echo(f"dropped {gone} of {_counted(len(found), 'message')}" if found else "nothing to drop")
    sys.exit(0 if gone == len(found) else 1)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion of this command line for a shell.

    \b
    Example: dispatcher completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise AssertionError(f"click knows no {shell}")
    click.echo(kind(main, {}, "dispatcher", "_DISPATCHER_COMPLETE").source())


@main.group(short_help="Both ends of the system, for trying it out.")
def dev() -> None:
    """Both ends of the system, for trying it out on an emulator: requests, and workers that serve them."""


_seed = click.option("--seed", type=int, help="The same seed does the same.  [default: another each time]")


@dev.command("produce", short_help="Send made-up requests to the master queue until stopped.")
@click.option("--rate", type=click.FloatRange(min=0.1, max=1000), default=20.0, show_default=True, help="A second.")
@_seed
@_config
def dev_produce(rate: float, seed: int | None, config: Path | None) -> None:
    """Send made-up requests to the master queue until stopped, a few duplicates and bad ones among them.

    \b
    Example: dispatcher dev produce --rate 50
    """
    from dispatcher.demo import dev as ends

    settings = _loaded(load, config)
    _until_stopped(lambda clients: ends.produce(settings, clients, rate, _or_any(seed), _say))


@dev.command("workers", short_help="Serve every Region's queue until stopped.")
@_seed
@_config
def dev_workers(seed: int | None, config: Path | None) -> None:
    """Serve every Region's queue until stopped: half a second a request, and Spot takes GPUs back now and then.

    What they serve is gone, so not on AWS itself.

    \b
    Example: dispatcher dev workers
    """
    from dispatcher.demo import dev as ends

    settings = _loaded(load, config)
    _until_stopped(lambda clients: ends.work(settings, clients, _or_any(seed), _say))


@main.command(short_help="Compare routing policies off-line.")
@click.argument("scenario", default="unequal")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed brings the same arrivals.")
@click.option("--policy", "names", multiple=True, help="Only this one; may be repeated.  [default: all]")
@click.option("--minutes", type=click.IntRange(min=1), help="Of simulated time.  [default: the scenario's own]")
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="What 'dispatcher record' wrote.")
@click.option("--plot", "picture", type=click.Path(path_type=Path, dir_okay=False), help="Draw it: FILE.png or .svg.")
@_json
def simulate(
    scenario: str,
    seed: int,
    names: tuple[str, ...],
    minutes: int | None,
    file: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Compare routing policies off-line, with the daemon's own code: how long would messages have waited?

    \b
    SCENARIO, unequal if none is given, is one of: equal, unequal, spot-loss,
    burst, diurnal, cold-start, many-regions, many-dispatchers, wrong-drain,
    snapshot, recorded (of --file, or of a recording that comes along).
    Example: dispatcher simulate spot-loss --plot spot-loss.svg
    """
    from dataclasses import replace

    from dispatcher.model import Policy
    from dispatcher.simulation import report
    from dispatcher.simulation.engine import play
    from dispatcher.simulation.scenarios import BUILT_IN, RECORDING, recorded

    try:
        policies = [Policy(name) for name in names] or list(Policy)
    except ValueError as unknown:
        raise click.UsageError(f"--policy: there is {', '.join(Policy)}") from unknown
    if scenario == "recorded":
        try:
            chosen = recorded(file or RECORDING)
        except ConfigurationError as fault:
            _fail(str(fault))
    elif file is not None:
        raise click.UsageError("--file is for the scenario 'recorded'")
    elif scenario in BUILT_IN:
        chosen = BUILT_IN[scenario]
    else:
        raise click.UsageError(f"no scenario {scenario!r}; there are {', '.join(BUILT_IN)} and recorded")
    if picture and picture.suffix not in (".png", ".svg"):
        raise click.UsageError(f"--plot: {picture} must end in .png or .svg")
    if picture and not picture.absolute().parent.is_dir():
        raise click.UsageError(f"--plot: there is no folder {picture.parent}")
    if minutes:
        chosen = replace(chosen, seconds=minutes * 60)
    outcomes = []
    with _progress() as progress:
        for policy in policies:
            bar = progress.add_task(policy, total=chosen.seconds)
            outcomes.append(play(chosen, policy, seed, progress=partial(_advance, progress, bar)))
            progress.update(bar, completed=chosen.seconds)
    if picture:
        try:
            report.plot(chosen, outcomes, picture)
        except DispatcherError as fault:
            _fail(str(fault))
    if as_json:
        _print_json(report.values(chosen, seed, outcomes))
    else:
        click.echo(report.title(chosen))
        _print_table(report.rows(outcomes))
        if picture:
            click.echo(f"drawn in {picture}")


@main.command(short_help="Write down what a live system does, for simulate.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, writable=True))
@click.option("--minutes", type=click.FloatRange(min=0.05), default=60.0, show_default=True, help="How long.")
@click.option("--every", "every_s", type=click.FloatRange(min=0.5), default=15.0, show_default=True, help="Seconds.")
@_config
@_json
def record(file: Path, minutes: float, every_s: float, config: Path | None, as_json: bool) -> None:
    """Write down what a live system does, for 'dispatcher simulate recorded --file FILE'. Ctrl-C ends it early.

    \b
    Example: dispatcher record monday.jsonl --minutes 120
    """
    from dispatcher.commands.record import record as write

    settings = _loaded(load, config)
    frames = int(minutes * 60 / every_s) + 1
    written = missing = 0
    opened = False
    try:
        with file.open("x", encoding="utf-8") as out, _progress() as progress:
            opened = True
            bar = progress.add_task("recording", total=frames)

            def wrote(lacks_one: bool) -> None:
                nonlocal written, missing
                written += 1
                missing += lacks_one
                progress.advance(bar)

            _with_clients(
                lambda clients: write(
                    settings, clients, out, seconds=minutes * 60, every_s=every_s, wrote=wrote, say=_say
                )
            )
    except KeyboardInterrupt:
        click.echo("dispatcher: ended early", err=True)
    except FileExistsError:
        _fail(f"{file} exists: name another file, or remove it")
    except OSError as fault:
        _fail(f"{file}: {fault.strerror}")
    finally:
        if opened and not written:
            file.unlink()
    if not written:
        _fail("nothing was recorded")
    if as_json:
        _print_json({"file": str(file), "frames": written, "frames_with_a_region_missing": missing})
    else:
        lack = f"; {missing} lack a Region" if missing else ""
        click.echo(f"{_counted(written, 'frame')} in {file}{lack}")


def _advance(progress: Progress, bar: TaskID, completed: int) -> None:
    progress.update(bar, completed=completed)


def _loaded[S](loader: Callable[[Path | None], S], config: Path | None, *, status: int = BAD_CONFIGURATION) -> S:
    try:
        return loader(config)
    except ConfigurationError as fault:
        for line in fault.faults:
            click.echo(f"dispatcher: {line}", err=True)
        sys.exit(status)


def _name_unknown() -> None:
    for name in unknown_variables():
        _say(f"dispatcher: {name} is not a setting; it is ignored")


def _with_clients(work: Callable[[Any], Any], *, patience: str = "") -> Any:
    """Run `work` with AWS clients that are closed afterwards; a fault of AWS ends the command with one line.

    `patience` is said, once, where somebody looks and it takes longer than a second.
    """
    from dispatcher.aws.clients import Clients
    from dispatcher.clock import Clock
    from dispatcher.telemetry.metrics import Metrics

    async def inside() -> Any:
        async with Clients(Clock(), Metrics.unread()) as clients:
            if patience and sys.stderr.isatty():
                asyncio.get_running_loop().call_later(PATIENCE_S, _say, patience)
            return await work(clients)

    try:
        return asyncio.run(inside())
    except DispatcherError as fault:
        _fail(_said(fault))


def _said(fault: DispatcherError) -> str:
    from dispatcher.commands.advice import explained

    return explained(fault) if isinstance(fault, AwsError) else str(fault)


def _until_stopped(work: Callable[[Any], Any]) -> None:
    """`work` has no end but SIGTERM and SIGINT, which are its good one."""

    async def stoppable(clients: Any) -> None:
        working = asyncio.ensure_future(work(clients))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, working.cancel)
        try:
            await working
        except asyncio.CancelledError:
            _say("stopped")

    _with_clients(stoppable)


def _or_any(seed: int | None) -> int:
    """A producer that starts again must not send the requests that it sent before: they would be duplicates."""
    return time.time_ns() if seed is None else seed


def _say(line: str) -> None:
    click.echo(line, err=True)


def _listed(lines: list[int]) -> str:
    more = f" and {len(lines) - FAULTS_SHOWN} more" if len(lines) > FAULTS_SHOWN else ""
    return f"line{'s' * (len(lines) > 1)} {', '.join(map(str, lines[:FAULTS_SHOWN]))}{more}"


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def _progress() -> Progress:
    """On standard error, and only where somebody looks."""
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _sweeping(what: str, work: Callable[[Any, Callable[[int, int], None]], Any]) -> Any:
    """Run `work` with clients and a progress bar: it is told about how many there are, and how many more were seen."""
    with _progress() as progress:
        bar = progress.add_task(what, total=None)

        def seen(size: int, more: int) -> None:
            progress.update(bar, total=size, advance=more)

        return _with_clients(lambda clients: work(clients, seen))


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


async def _supervise(settings: Settings, config: Path | None) -> int:
    from dispatcher.supervisor import Supervisor

    command = [sys.executable, "-m", "dispatcher", "run", *(["--config", str(config)] if config else [])]
    return await Supervisor(settings, command).run()


def _fail(message: str) -> NoReturn:
    click.echo(f"dispatcher: {message}", err=True)
    sys.exit(1)


def _print_json(value: object, *, one_line: bool = False) -> None:
    click.echo(json.dumps(value, indent=None if one_line else 2, ensure_ascii=False))


def _print_table(rows: list[list[str]], columns: list[str] | None = None) -> None:
    lines = [*([columns] if columns else []), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # never cut to the terminal's width: ids and URLs are there to be copied
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
