"""Where the `callboard` command begins: it needs the `cli` extra, and says so where that is missing."""

from __future__ import annotations

import sys

MISSING_EXTRA = 2
_EXTRA = ("typer", "rich")


def main() -> None:
    """Run the `callboard` command."""
    try:
        # Here and not above: an installation without the extra has neither typer nor rich.
        from callboard.cli.app import run  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.stderr.write(f"callboard: the command line needs {error.name}: pip install 'callboard[cli]'\n")
        sys.exit(MISSING_EXTRA)
    sys.exit(run())


if __name__ == "__main__":
    main()
