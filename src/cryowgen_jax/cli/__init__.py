"""The command line: parse, call, exit code. See ARCHITECTURE.md."""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import threading
from collections.abc import Iterator

import click
import jax

from cryowgen_jax.types import InputError

COMMANDS = {
    "demo": "Simulate a tomogram with known truth, restore it by every method, and compare.",
    "simulate": "Make a tomogram with known truth.",
    "inspect": "Find the missing wedge in a tomogram's own power spectrum.",
    "train": "Adapt the learned model to tomograms of your own, without clean volumes.",
    "restore": "Restore a tomogram as a family of volumes with an uncertainty map.",
}
BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143


class _Commands(click.Group):
    """Commands that are imported when they are called, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"cryowgen_jax.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with 'cryowgen demo', or with 'cryowgen inspect' on a tomogram of yours. Every command has a --help.",
)
@click.version_option(package_name="cryowgen-jax")
@click.pass_context
def cryowgen(ctx: click.Context) -> None:
    """Restore the missing wedge of cryo-electron tomograms, with honest uncertainty.

    A tomogram lacks a wedge of Fourier space. cryowgen fills it not with one answer but with a family of them, each of
    which agrees with the data: their mean is the restoration, their spread says how far to trust it.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit status 2, an interruption 130, SIGTERM 143."""
    with _stopping_on_sigterm() as terminated:
        _run(terminated)


def _run(terminated: list[int]) -> None:
    try:
        status = cryowgen.main(prog_name="cryowgen", standalone_mode=False)
    except InputError as error:
        _stop(BAD_INPUT, f"error: {error}")
    except click.UsageError as error:
        usage = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        _stop(BAD_INPUT, f"error: {error.format_message().rstrip('.')}{usage}")
    except (KeyboardInterrupt, click.Abort) as stop:
        advice = str(stop.__cause__ or stop)  # click makes an Abort of every KeyboardInterrupt
        status, what = (TERMINATED, "terminated") if terminated else (INTERRUPTED, "interrupted")
        _stop(status, f"{what}{': ' if advice else ''}{advice}")
    except OSError as error:
        _stop(BAD_INPUT, f"error: '{error.filename}': {error.strerror}: check the path, its permissions and the disk")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _stop(BAD_INPUT, "error: out of memory: bin the tomogram, crop it, or ask for fewer --samples")
    else:
        sys.exit(status if isinstance(status, int) else 0)


@contextlib.contextmanager
def _stopping_on_sigterm() -> Iterator[list[int]]:
    """Take SIGTERM, as a batch system sends it, like Ctrl-C; the list tells whether it came."""
    came: list[int] = []

    def stop(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # where no signal comes
        yield came
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _stop(status: int, message: str) -> None:
    print(f"cryowgen: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
