"""``cg.sample``: chains of any kernel on any posterior, and what comes of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from cryowgen_jax.chains import diagnostics, parallel, streaming
from cryowgen_jax.chains.assembly import Assembly, assemble, require_start
from cryowgen_jax.chains.record import Progress, RunRecord
from cryowgen_jax.chains.run import START_STEP, run
from cryowgen_jax.chains.schedule import plan
from cryowgen_jax.potentials import Posterior
from cryowgen_jax.types import Array, InputError, LogDensityFn, PRNGKey

if TYPE_CHECKING:
    from blackjax.base import SamplingAlgorithm

PILOT_STEP = START_STEP - 2  # number of the key for pilot runs
KEPT_BYTES = 512 * 2**20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChainResult:
    """Draws of a posterior, their moments, and whether the chains have converged.

    Attributes
    ----------
    samples
        Kept draws, (num_chains, num_kept, ...), evenly spaced along each chain after warm-up.
    mean, variance
        Over all chains and all steps after warm-up, kept or not.
    ess
        Smallest effective sample size, chains pooled. For volumes: of all Fourier shells, measured region and wedge
        apart (a linear functional and the energy of each). Otherwise: of all coordinates. At most 512 draws of a chain
        are recorded for it, so that it is a lower bound for chains that mix faster than that. nan where fewer than 8
        were recorded.
    r_hat
        Largest split R-hat of the same numbers.
    acceptance
        Mean acceptance rate after warm-up; 1 for kernels that reject nothing.
    step_size
        After warm-up; nan for an algorithm that brought its own.
    energy_error
        Root mean square of the change of energy in a step, on which a Metropolis test decides. Divide by the square
        root of the number of elements for the error per element. nan for kernels that do not compute it.
    gradient_noise
        For a random witness: the variance that the noise of its gradient adds in a step if it is not removed, over the
        variance of the noise that the step injects. nan for other witnesses.
    records
        Summaries that diagnostics are computed from, (num_chains, draws, summaries); see :meth:`diagnose`.
    num_gradients
        Gradients of the witness or log-density, all chains, warm-up included.
    sampler, reason
        The kernel that ran, and why it was chosen.
    status
        "ok", or at which step the run stopped and why; everything else then is of the steps before.
    groups
        Number of groups in ``records`` (shells or coordinates), and of kinds of summaries before the virials.
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
        """Rank-normalised bulk and tail ESS, R-hat and residual of the virial, by Fourier shell or by coordinate."""
        return diagnostics.diagnose(self.records, *self.groups)

    @property
    def verdict(self) -> str:
        """Whether the run can be relied on: "converged", "not converged: ..." with what to do, "not usable: ..."."""
        size, kinds = self.groups
        residual = error = 0.0
        if self.records.shape[-1] > size * kinds and self.records.shape[1] >= diagnostics.MIN_DRAWS:
            virial, errors = diagnostics.virial_residual(self.records[..., size * kinds :])
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
        ``jax.random.key``. The same key gives the same samples on any number of devices (to rounding on accelerators),
        and whether or not the run was interrupted and resumed.
    posterior
        A ``Posterior``, or the log-density of one position, any callable; a log-density needs ``init``.
    sampler
        "auto" chooses, and ``reason`` of the result says why:

        - exact draws where the posterior is Gaussian;
        - kinetic Langevin otherwise. It starts from exact draws of the Gaussian part, anneals to the posterior and
          learns the mean curvature of the witness, all in warm-up. It has a Metropolis test up to 512 elements;
        - Langevin with the noise of the gradient removed for a random witness;
        - MALA for a bare log-density.

        Or a name: "kinetic", "kinetic_unadjusted", "pcnl", "pcnl_unadjusted", "preconditioned", "tempered",
        "stochastic", "sk_rock", "langevin", "leimkuhler_matthews", "mala". Or a BlackJAX algorithm, whose state has a
        ``position``.
    num_chains, num_steps
        Number of chains, and of steps of each after warm-up.
    warmup
        Steps before, during which step sizes adapt; none of them counts. By default a quarter of ``num_steps``, and
        none for exact draws.
    num_kept
        Draws kept of each chain. By default the largest divisor of ``num_steps`` for which they fit in 512 MiB.
    init
        One start position, or one per chain (num_chains, ...). Of a log-density's, an array of num_chains entries
        that the log-density takes counts as one per chain. By default draws of the Gaussian part, or of the conditional
        prior where the decoder is not diagonal in Fourier space.
    devices
        Devices to share the chains; as many are used as share them evenly. All local ones by default.
    batch_size
        Most chains that a device vectorises at a time. Lower it where memory is short; it changes rounding only.
    checkpoint
        Folder to save the run in, and to resume it from where it holds one. Key, numbers of steps and chains, and the
        sampler's name have to be those of that run. Whether density, start and a ready-made algorithm are, is not
        checked.
    progress
        True prints a line after every chunk of steps; a function is called with a ``Progress``.

    Returns
    -------
    ChainResult
        ``samples``, ``mean`` and ``variance``, and in ``verdict`` whether they can be relied on. A run that diverges
        raises nothing: ``status`` says so.

    Raises
    ------
    ValueError
        Where the sampler is not known, does not fit the posterior, or numbers or start do not fit.
    TypeError
        Where a sampler by name needs a decoder that is diagonal in Fourier space.

    Examples
    --------
    >>> decoder, volume = cg.Wedge(cg.wedge_mask((4, 4, 4))), jnp.ones((4, 4, 4))
    >>> posterior = cg.Posterior(lambda z: -jnp.sum(jnp.cosh(z)), decoder, volume, 0 * volume, 10.0, 1.0)
    >>> result = cg.sample(jax.random.key(0), posterior, num_chains=2, num_steps=20)
    >>> result.sampler, result.samples.shape
    ('kinetic', (2, 20, 4, 4, 4))
    """
    if num_chains < 1:
        raise InputError(f"num_chains={num_chains}: give at least 1")
    positions = None if init is None else _one_per_chain(init, posterior, num_chains)
    assembly = assemble(
        jax.random.fold_in(key, PILOT_STEP), posterior, sampler, None if positions is None else positions[0]
    )
    if warmup is None:
        warmup = 0 if assembly.kernel.is_exact else max(1, num_steps // 4)
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
    return _result(record, assembly)


def _result(record: RunRecord, assembly: Assembly) -> ChainResult:
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
        num_gradients=record.chains.step.shape[0] * record.steps * assembly.kernel.gradients_per_step,
        sampler=assembly.kernel.name,
        reason=assembly.reason,
        status=record.status,
        groups=groups,
    )


def _draws_that_fit(num_steps: int, bytes_per_draw: int) -> int:
    return parallel.largest_divisor(max(1, num_steps), max(1, KEPT_BYTES // bytes_per_draw))


def _one_per_chain(init: Array, posterior: Posterior | LogDensityFn, num_chains: int) -> Array:
    """Starts of all chains, (num_chains, ...), from one for each or one for all."""
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
