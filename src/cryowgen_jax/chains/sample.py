"""Chains of any kernel on any posterior: the one call that users make."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cryowgen_jax.chains import diagnostics, parallel, streaming
from cryowgen_jax.chains.assembly import assemble, require_start
from cryowgen_jax.chains.record import Progress
from cryowgen_jax.chains.run import START_STEP, run
from cryowgen_jax.chains.schedule import plan
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.types import Array, InputError, LogDensityFn, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

PILOT_STEP = START_STEP - 2  # the key of whatever is tried before the chains
KEPT_BYTES = 512 * 2**20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChainResult:
    """What chains have to say about a posterior.

    Attributes
    ----------
    samples
        Kept draws, (num_chains, num_kept, ...), evenly spaced along each chain after warm-up.
    mean, variance
        Over all chains and all steps after warm-up, streamed.
    ess
        Smallest effective sample size, chains pooled: over Fourier shells of volumes, measured region and wedge apart
        (a linear functional and the energy of each), over coordinates otherwise. Computed from at most 512 records a
        chain, hence a lower bound for chains that mix faster than they are recorded. nan where too few were.
    r_hat
        Largest split R-hat, likewise.
    acceptance
        Mean acceptance rate after warm-up; 1 for kernels that reject nothing.
    step_size
        After adaptation; nan for an algorithm that brought its own.
    num_gradients
        Gradients of the witness (or log-density), all chains, warm-up included.
    energy_error
        Root mean square of the change of energy per step, which a Metropolis test would see; nan for kernels that do
        not know it. Per element it is this over the square root of their number.
    gradient_noise
        Share of the injected noise's variance that the noise of a random witness's gradient would add if it were not
        removed; nan where the witness is not random.
    records
        What diagnostics are computed from, (num_chains, draws, summaries); see :meth:`diagnose`.
    sampler, reason
        The kernel that ran, and why it was chosen.
    status
        "ok", or at which step the run stopped and why; then everything above is of the last good state.
    """

    samples: Array
    mean: Array
    variance: Array
    ess: Array
    r_hat: Array
    acceptance: Array
    step_size: Array
    energy_error: Array
    gradient_noise: Array
    records: Array
    num_gradients: int = dataclasses.field(metadata={"static": True})
    sampler: str = dataclasses.field(metadata={"static": True})
    reason: str = dataclasses.field(metadata={"static": True})
    status: str = dataclasses.field(metadata={"static": True})
    groups: tuple[int, int] = dataclasses.field(metadata={"static": True})

    def diagnose(self) -> diagnostics.Diagnosis:
        """Rank-normalised bulk and tail ESS, R-hat and virial residual, by Fourier shell or by coordinate."""
        return diagnostics.diagnose(self.records, *self.groups)

    @property
    def verdict(self) -> str:
        """Whether the run can be relied on, in words: "converged", or "not converged: ..." with what to do."""
        size, summaries = self.groups
        residual = error = 0.0
        if self.records.shape[-1] > size * summaries and self.records.shape[1] >= diagnostics.MIN_DRAWS:
            virial, errors = diagnostics.virial_residual(self.records[..., size * summaries :])
            worst = jnp.nanargmax(jnp.abs(virial) / errors)
            residual, error = float(virial[worst]), float(errors[worst])
        return diagnostics.words(
            self.status, float(self.ess), float(self.r_hat), (residual, error), float(self.acceptance)
        )


def sample(
    key: PRNGKey,
    posterior: Posterior | LogDensityFn,
    *,
    sampler: str | SamplingAlgorithm = "auto",
    num_chains: int = 8,
    num_steps: int = 2000,
    warmup: int | None = None,
    num_kept: int | None = None,
    init: Array | None = None,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    progress: bool | Callable[[Progress], None] = False,
) -> ChainResult:
    """Sample a posterior with chains that are vmapped, scanned over steps and sharded over devices.

    Parameters
    ----------
    key
        ``jax.random.key``. The same key gives the same samples whatever the devices (to rounding on accelerators), the
        chunks or a resumption.
    posterior
        A ``Posterior``, or any callable log-density of one position (then ``init`` is needed).
    sampler
        "auto": exact draws if nothing but the Gaussian part is left; else kinetic Langevin, which starts from exact
        draws of the Gaussian part and an annealing ramp, learns the mean curvature of the witness in warm-up and has a
        Metropolis test where that costs nothing; MALA for a bare log-density. The result says what was chosen and why.
        Or by name: "kinetic", "kinetic_unadjusted", "pcnl", "pcnl_unadjusted", "preconditioned", "tempered",
        "stochastic", "sk_rock", "langevin", "leimkuhler_matthews", "mala". Or a BlackJAX algorithm, whose state has a
        ``position``.
    num_chains, num_steps, num_kept
        Chains; steps of each after warm-up; draws kept of each: by default the largest divisor of ``num_steps`` whose
        draws fit in 512 MiB.
    warmup
        Steps not counted, during which step sizes adapt; a quarter of ``num_steps`` by default, none for exact draws.
    init
        One start position, or one per chain (num_chains, ...); for a plain log-density an array of num_chains entries
        that it accepts counts as one per chain. By default draws of the Gaussian part, or of the conditional prior
        where there is none.
    devices
        Devices to shard the chains over: all local ones by default, as many as share them evenly. CPUs keep chains of
        a few hundred elements together.
    batch_size
        Most chains of one device that are alive at a time. Lower it where memory is short; it changes rounding only.
    checkpoint
        Folder to save the run in and to resume it from.
    progress
        True prints a line per chunk of steps; or a function that is told.

    Raises
    ------
    ValueError
        Where sampler, numbers or start do not fit.
    """
    if num_chains < 1:
        raise InputError(f"num_chains={num_chains}: give at least 1")
    positions = None if init is None else _one_per_chain(init, posterior, num_chains)
    assembly = assemble(
        jax.random.fold_in(key, PILOT_STEP), posterior, sampler, None if positions is None else positions[0]
    )
    if warmup is None:
        warmup = 0 if assembly.kernel.gradients_per_step == 0 else max(1, num_steps // 4)
    if positions is None:
        start_of = require_start(assembly)
        start_key = jax.random.fold_in(key, START_STEP)
        positions = jax.vmap(lambda i: start_of(jax.random.fold_in(start_key, i)))(jnp.arange(num_chains))
    if num_kept is None:
        num_kept = _draws_that_fit(num_steps, positions.nbytes)
    traced = parallel.is_traced((key, assembly.kernel, positions))
    record = run(
        key,
        assembly.kernel,
        positions,
        assembly.summary,
        plan(warmup, num_steps, num_kept, in_one=traced, learns=assembly.kernel.refit is not None),
        devices=devices,
        batch_size=batch_size,
        checkpoint=checkpoint,
        progress=_print_progress if progress is True else progress or None,
    )
    mean, variance = streaming.pool(record.chains.moments)
    groups = (assembly.summary.size, assembly.summary.kinds)
    summaries = record.records[..., : groups[0] * groups[1]]
    return ChainResult(
        samples=record.kept,
        mean=mean,
        variance=variance,
        ess=jnp.nanmin(diagnostics.effective_sample_size(summaries)),
        r_hat=jnp.nanmax(diagnostics.split_r_hat(summaries)),
        acceptance=jnp.mean(record.chains.acceptance),
        step_size=record.chains.step_size[0],
        energy_error=jnp.sqrt(jnp.mean(record.chains.energy)),
        gradient_noise=jnp.mean(record.chains.gradient_noise),
        records=record.records,
        num_gradients=num_chains * record.steps * assembly.kernel.gradients_per_step,
        sampler=assembly.kernel.name,
        reason=assembly.reason,
        status=record.status,
        groups=groups,
    )


def _draws_that_fit(num_steps: int, bytes_per_draw: int) -> int:
    return parallel.largest_divisor(max(1, num_steps), max(1, KEPT_BYTES // bytes_per_draw))


def _one_per_chain(init: Array, posterior: Posterior | LogDensityFn, num_chains: int) -> Array:
    """One start per chain, given as such or as one for all."""
    init = jnp.asarray(init)
    if not jnp.issubdtype(init.dtype, jnp.floating):
        init = init.astype(jnp.float32)
    if isinstance(posterior, Posterior):
        one = jnp.shape(posterior.center)
        if init.shape not in (one, (num_chains, *one)):
            raise InputError(
                f"init has shape {init.shape}: give one position {one}, or one per chain {num_chains, *one}"
            )
        per_chain = init.shape != one
    else:
        per_chain = init.ndim >= 1 and init.shape[0] == num_chains and _accepts(posterior, init[0])
        if not per_chain and jax.eval_shape(posterior, init).shape != ():
            raise InputError(
                f"init has shape {init.shape}, for which the log-density is no scalar: give one position, or one per "
                f"chain ({num_chains}, ...)"
            )
    return init if per_chain else jnp.broadcast_to(init, (num_chains, *init.shape))


def _accepts(log_density: LogDensityFn, position: Array) -> bool:
    try:
        return jax.eval_shape(log_density, position).shape == ()
    except (TypeError, ValueError):
        return False


def _print_progress(progress: Progress) -> None:
    left = progress.seconds * (progress.num_steps / progress.step - 1)
    print(
        f"{progress.phase}: step {progress.step} of {progress.num_steps}, acceptance {progress.acceptance:.2f}, "
        f"about {left:.0f} s left",
        flush=True,
    )
