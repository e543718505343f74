"""The command line: parse, call, exit code. See ARCHITECTURE.md."""

from __future__ import annotations

import importlib
import sys

import click

from cryowgen_jax.types import InputError

COMMANDS = {
    "demo": "Simulate a tomogram with known truth, restore it by every method, and compare.",
    "simulate": "Make a tomogram with known truth.",
    "inspect": "Find the missing wedge in a tomogram's own power spectrum.",
    "restore": "Restore a tomogram as a family of volumes with an uncertainty map.",
}


class _Commands(click.Group):
    """Commands that are imported when they are called, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cryowgen_jax.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cryowgen-jax")
def cryowgen() -> None:
    """Restore the missing wedge of cryo-electron tomograms, with honest uncertainty.

    A tomogram lacks a wedge of Fourier space. cryowgen fills it not with one answer but with a family of them, drawn
    from the posterior given the data: their mean is the restoration, their spread says how far to trust it.
    """


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit status 2."""
    try:
        cryowgen.main(standalone_mode=False)
    except InputError as error:
        _fail(str(error))
    except click.UsageError as error:
        usage = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _fail(f"{error.format_message()}{usage}")
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (KeyboardInterrupt, click.Abort):
        print("cryowgen: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


def _fail(message: str) -> None:
    print(f"cryowgen: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
