"""python -m dispatcher, and the command `dispatcher`."""

import sys


def main() -> None:
    try:
        from dispatcher.cli import main as command_line
    except KeyboardInterrupt:
        sys.exit("\nAborted!")  # as click has it from here on
    command_line()


if __name__ == "__main__":
    main()
