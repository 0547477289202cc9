"""Commands: read arguments, call what does the work, return an exit status. Nothing is decided here."""

import sys
from pathlib import Path

import click

from dispatcher import __version__
from dispatcher.errors import ConfigurationError
from dispatcher.settings import Settings, load

BAD_CONFIGURATION = 2


def _settings(config: Path | None) -> Settings:
    try:
        return load(config)
    except ConfigurationError as fault:
        for line in fault.faults:
            click.echo(f"dispatcher: {line}", err=True)
        sys.exit(BAD_CONFIGURATION)


_config = click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file with the same keys; the environment overrides it."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dispatcher")
def main() -> None:
    """Put each asynchronous GPU-inference request, once, on the queue of the AWS Region that will serve it soonest."""


@main.command()
@_config
def run(config: Path | None) -> None:
    """The daemon. SIGTERM or SIGINT drains it; a second one stops it at once."""
    settings = _settings(config)
    import uvloop

    from dispatcher import app
    from dispatcher.telemetry import logs

    logs.configure(settings.log_level, settings.log_format)
    try:
        uvloop.run(app.run(settings))
    except app.StartError as fault:
        click.echo(f"dispatcher: {fault}", err=True)
        sys.exit(1)
    except Exception:
        logs.log.exception("process.failed")
        sys.exit(1)
