"""An OpenMM system as a differentiable energy: torch in, reduced energy and forces out, one context per worker."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

GAS_CONSTANT = 0.00831446261815324
"""kJ / (mol K)."""

NANOMETERS = {"nanometer": 1.0, "angstrom": 0.1}


def require_openmm() -> Any:
    """The package, or one line that says how to get it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import openmm
    except ImportError:
        raise ImportError("OpenMM is not installed; its energies need: pip install 'manifoldflow[energies]'") from None
    return openmm


class OpenMMEnergy:
    """E / kT of an OpenMM system, for batches of positions ``(B, atoms, 3)``, with gradients by its forces.

    Contexts are made at the first call and kept. Sites that OpenMM places itself (the fourth of a water) are placed before each
    evaluation, so what the batch says of them is not read and their gradient is 0. Positions that are no numbers, or at which
    OpenMM fails, have energy NaN and gradient 0. Gradients of gradients are not there.

    Args:
        system: an ``openmm.System``.
        temperature: in kelvin; 0 for energies in kJ/mol.
        length: unit of the positions, ``"nanometer"`` or ``"angstrom"``.
        platform: OpenMM platform: ``"Reference"`` (double precision), ``"CPU"``, ``"CUDA"``.
        workers: contexts that share a batch, each with one thread.
        box: rows are the periodic box vectors in nanometers, ``(3, 3)``; those of the system if absent.
    """

    def __init__(
        self,
        system: Any,
        temperature: float,
        *,
        length: str = "nanometer",
        platform: str = "CPU",
        workers: int = 1,
        box: Sequence[Sequence[float]] | np.ndarray | None = None,
    ) -> None:
        if length not in NANOMETERS:
            raise ValueError(f"length must be 'nanometer' or 'angstrom', got {length!r}")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        if temperature < 0:
            raise ValueError(f"temperature must be positive (kelvin), or 0 for kJ/mol, got {temperature}")
        self.system, self.temperature, self.platform, self.workers, self.box = (
            system,
            temperature,
            platform,
            workers,
            box,
        )
        self.scale = NANOMETERS[length]
        self.atoms = int(system.getNumParticles())
        self.is_free = np.array([not system.isVirtualSite(i) for i in range(self.atoms)])
        self.calls = 0
        """Energies evaluated so far."""
        self._contexts: list[Any] = []
        self._pool: ThreadPoolExecutor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "OpenMMEnergy":
        """Itself: contexts cannot be copied and are never changed, so averaged copies of a model share them."""
        return self

    @property
    def kt(self) -> float:
        """kT in kJ/mol; 1 if energies are in kJ/mol."""
        return GAS_CONSTANT * self.temperature if self.temperature else 1.0

    def at(self, temperature: float) -> "OpenMMEnergy":
        """The same system, and the same contexts, at another temperature."""
        made = OpenMMEnergy(self.system, temperature, platform=self.platform, workers=self.workers, box=self.box)
        self._start()
        made.scale, made._contexts, made._pool = self.scale, self._contexts, self._pool
        return made

    def __call__(self, x: Tensor) -> Tensor:
        """Reduced energies ``(...)`` of positions ``(..., atoms, 3)``; differentiable once."""
        if x.shape[-2:] != (self.atoms, 3):
            raise ValueError(f"positions must have the shape (..., {self.atoms}, 3), got {tuple(x.shape)}")
        return _Evaluate.apply(x, self)

    def evaluate(self, x: np.ndarray, *, forces: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies ``(B,)`` in kT and their gradients ``(B, atoms, 3)`` in kT per unit of length, in float64.

        Args:
            x: positions ``(B, atoms, 3)``.
            forces: whether gradients are wanted.
        """
        self._start()
        positions = np.asarray(x, dtype=np.float64) * self.scale
        pieces = np.array_split(np.arange(len(positions)), self.workers)

        def work(k: int) -> tuple[np.ndarray, np.ndarray | None]:
            return self._piece(self._contexts[k], positions[pieces[k]], forces)

        made = [work(0)] if self._pool is None else list(self._pool.map(work, range(self.workers)))
        self.calls += len(positions)
        energy = np.concatenate([m[0] for m in made])
        gradient = np.concatenate([m[1] for m in made]) if forces else None  # type: ignore[misc]
        return energy, gradient

    def _piece(self, context: Any, positions: np.ndarray, forces: bool) -> tuple[np.ndarray, np.ndarray | None]:
        openmm = require_openmm()
        energy = np.full(len(positions), np.nan)
        gradient = np.zeros_like(positions) if forces else None
        has_sites = not self.is_free.all()
        for i, p in enumerate(positions):  # OpenMM evaluates one configuration at a time
            if not np.isfinite(p).all():
                continue
            try:
                context.setPositions(p)
                if has_sites:
                    context.computeVirtualSites()
                state = context.getState(getEnergy=True, getForces=forces)
            except openmm.OpenMMException:
                continue
            energy[i] = state.getPotentialEnergy()._value / self.kt
            if gradient is not None:
                force = state.getForces(asNumpy=True)._value * (self.scale / self.kt)
                is_number = np.isfinite(energy[i]) and np.isfinite(force).all()
                gradient[i] = np.where(is_number, -force * self.is_free[:, None], 0.0)
        return energy, gradient

    def _start(self) -> None:
        if self._contexts:
            return
        openmm = require_openmm()
        try:
            platform = openmm.Platform.getPlatformByName(self.platform)
        except openmm.OpenMMException:
            known = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
            raise ValueError(f"OpenMM has no platform {self.platform!r} here; it has {', '.join(known)}") from None
        options = {"Threads": "1"} if self.platform == "CPU" else {}
        for _ in range(self.workers):
            context = openmm.Context(self.system, openmm.VerletIntegrator(0.001), platform, options)
            if self.box is not None:
                context.setPeriodicBoxVectors(*np.asarray(self.box, dtype=float))
            self._contexts.append(context)
        if self.workers > 1:
            self._pool = ThreadPoolExecutor(self.workers)


class _Evaluate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, energy: OpenMMEnergy) -> Tensor:
        flat = x.detach().reshape(-1, energy.atoms, 3)
        value, gradient = energy.evaluate(flat.cpu().numpy(), forces=ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(torch.as_tensor(gradient, dtype=x.dtype, device=x.device).reshape(x.shape))
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(x.shape[:-2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (gradient,) = ctx.saved_tensors
        return torch.nan_to_num(grad)[..., None, None] * gradient, None
