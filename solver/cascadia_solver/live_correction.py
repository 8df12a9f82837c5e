"""The live cost source: a correction of another source, learnt from engines' own histograms.

Every window in which an engine did enough work gives one ratio of observed to predicted time, for
prompts (from time to first token) and for decoding (from time per output token). A correction is the
median of the latest logarithms, pulled towards none by a few imaginary windows that found the
prediction right: single windows with a stalled or restarted engine move it little, a lasting change
of the engine moves it within half its memory. Corrections are kept per model, GPU, shape and engine
version, since an upgrade may change them all; a shape that was never tried takes those of the others.
Pure functions on immutable values, JSON-able.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, expm1, isfinite, log
from statistics import median
from typing import Any, Literal, NamedTuple

from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.replica_memory import MemoryUse, Shape
from cascadia_solver.roofline import CostSource
from cascadia_solver.steptime import StepModel

__all__ = ["Correction", "CorrectionKey", "LiveCorrections", "LiveSource", "scaled"]

Phase = Literal["prefill", "decode"]

_SCHEMA = 1
_REMEMBERED = 64
"""Windows that a correction looks back on."""
_IMAGINARY = 4
"""Windows by which it is pulled towards none."""
_FURTHEST = log(4.0)
"""No window counts for more: beyond that the engine was not serving, or the prediction is of another replica."""
_NORMAL_SPREAD = 1.4826
"""Standard deviation of a normal distribution in its median absolute deviations."""

_DECODE_PARTS = (
    "weight_seconds", "expert_seconds", "decode_context_seconds", "decode_window_seconds", "logits_seconds",
    "overhead_seconds", "request_seconds",
)  # fmt: skip
_PREFILL_PARTS = (
    "token_seconds", "prefill_pair_seconds", "prefill_window_pair_seconds", "transfer_token_seconds",
    "prompt_overhead_seconds", "first_token_seconds",
)  # fmt: skip


class CorrectionKey(NamedTuple):
    """What a correction is for.

    Attributes:
        model: Repository.
        gpu: The catalogue's name.
        shape: Such as ``TP4xPP1``.
        engine_version: Such as ``sglang 0.5.9``.
    """

    model: str
    gpu: str
    shape: str
    engine_version: str


@dataclass(frozen=True, slots=True)
class Correction:
    """Logarithms of observed over predicted time, latest last, for each phase."""

    prefill: tuple[float, ...] = ()
    decode: tuple[float, ...] = ()

    def factor(self, phase: Phase) -> float:
        """What to multiply the predicted time of a phase by."""
        ratios = getattr(self, phase)
        return exp(_trust(len(ratios)) * median(ratios)) if ratios else 1.0

    def spread_percent(self, phase: Phase) -> float:
        """Robust standard deviation of the windows about the correction, percent."""
        ratios = getattr(self, phase)
        middle = median(ratios)
        return 100.0 * expm1(_NORMAL_SPREAD * median(abs(ratio - middle) for ratio in ratios))


def _trust(windows: int) -> float:
    return windows / (windows + _IMAGINARY)


@dataclass(frozen=True, slots=True)
class LiveCorrections:
    """All corrections that were learnt."""

    by_key: Mapping[CorrectionKey, Correction] = field(default_factory=dict)

    def of_other_shapes(self, key: CorrectionKey) -> dict[str, Correction]:
        """Corrections of the same model, GPU and engine version on other shapes, by shape."""
        return {
            other.shape: known
            for other, known in sorted(self.by_key.items())
            if other != key and other._replace(shape=key.shape) == key
        }

    def factor(self, key: CorrectionKey, phase: Phase) -> float:
        """What to multiply the predicted time of a phase by.

        Where nothing was learnt of the very shape, the median of the model's other shapes: an engine is slower for
        reasons that most shapes share, and a shape must not look fast for not having been tried.
        """
        if key in self.by_key:
            return self.by_key[key].factor(phase)
        others = self.of_other_shapes(key).values()
        return exp(median(log(known.factor(phase)) for known in others)) if others else 1.0

    def observed(
        self, key: CorrectionKey, phase: Phase, observed_seconds: float, predicted_seconds: float
    ) -> LiveCorrections:
        """The corrections after one more window.

        Args:
            key: What was observed.
            phase: ``prefill`` or ``decode``.
            observed_seconds: Median of the window; a window without one (0, infinite, not a number) is left out.
            predicted_seconds: What the uncorrected source says at the window's load, > 0.
        """
        if not (isfinite(observed_seconds) and observed_seconds > 0.0 and predicted_seconds > 0.0):
            return self
        ratio = max(-_FURTHEST, min(log(observed_seconds / predicted_seconds), _FURTHEST))
        known = self.by_key.get(key, Correction())
        kept = (*getattr(known, phase), ratio)[-_REMEMBERED:]
        changed = Correction(kept, known.decode) if phase == "prefill" else Correction(known.prefill, kept)
        return LiveCorrections({**self.by_key, key: changed})

    def to_json(self) -> dict[str, object]:
        """As a JSON document."""
        return {
            "schemaVersion": _SCHEMA,
            "corrections": [
                {
                    "model": key.model, "gpu": key.gpu, "shape": key.shape, "engineVersion": key.engine_version,
                    "prefill": list(known.prefill), "decode": list(known.decode),
                }
                for key, known in sorted(self.by_key.items())
            ],
        }  # fmt: skip

    @staticmethod
    def from_json(document: Any) -> LiveCorrections:
        """Read what `to_json` wrote.

        Raises:
            InputError: If it is no such document; names the field.
        """
        if not isinstance(document, Mapping) or document.get("schemaVersion") != _SCHEMA:
            raise InputError(Problem("schemaVersion", f"must be {_SCHEMA}; delete the file to learn afresh"))
        listed = document.get("corrections")
        if not isinstance(listed, list):
            raise InputError(Problem("corrections", "must be a list"))
        return LiveCorrections(dict(_entry(index, entry) for index, entry in enumerate(listed)))


def _entry(index: int, entry: Any) -> tuple[CorrectionKey, Correction]:
    where = f"corrections[{index}]"
    if not isinstance(entry, Mapping):
        raise InputError(Problem(where, "must be an object"))
    names = [name for each in ("model", "gpu", "shape", "engineVersion") if isinstance(name := entry.get(each), str)]
    if len(names) < len(CorrectionKey._fields):
        raise InputError(Problem(where, "needs model, gpu, shape and engineVersion"))
    return CorrectionKey(*names), Correction(_ratios(where, entry, "prefill"), _ratios(where, entry, "decode"))


def _ratios(where: str, entry: Mapping[str, Any], phase: Phase) -> tuple[float, ...]:
    listed = entry.get(phase)
    if not isinstance(listed, list) or not all(
        isinstance(ratio, int | float) and not isinstance(ratio, bool) and abs(ratio) <= _FURTHEST for ratio in listed
    ):
        raise InputError(Problem(f"{where}.{phase}", f"must be a list of numbers of at most {_FURTHEST:.2f} each way"))
    return tuple(float(ratio) for ratio in listed[-_REMEMBERED:])


def scaled(step: StepModel, prefill: float, decode: float) -> StepModel:
    """Scale what paces prompts and what paces decoding, each by its own factor."""
    changed = {name: getattr(step, name) * prefill for name in _PREFILL_PARTS}
    changed |= {name: getattr(step, name) * decode for name in _DECODE_PARTS}
    return step._replace(**changed)


@dataclass(frozen=True, slots=True)
class LiveSource:
    """The `CostSource` that corrects another one.

    Attributes:
        base: The corrected source.
        corrections: What was learnt.
        engine_version: Of the engines that are planned for.
    """

    base: CostSource
    corrections: LiveCorrections
    engine_version: str

    @property
    def name(self) -> str:
        """``live``, and what it corrects."""
        return f"live correction of {self.base.name}"

    def step_model(
        self,
        model: ModelFacts,
        gpu: GpuFacts,
        shape: Shape,
        precision: str,
        *,
        gpus_per_node: int = 8,
        chunk_tokens: int | None = None,
    ) -> StepModel:
        """The base's step model, corrected by the windows of this very replica, or else of the model's other shapes."""
        step = self.base.step_model(
            model, gpu, shape, precision, gpus_per_node=gpus_per_node, chunk_tokens=chunk_tokens
        )
        key = self._key(model, gpu, shape)
        return scaled(step, self.corrections.factor(key, "prefill"), self.corrections.factor(key, "decode"))

    def memory_use(
        self, model: ModelFacts, gpu: GpuFacts, shape: Shape, precision: str, *, chunk_tokens: int | None = None
    ) -> MemoryUse:
        """The base's."""
        return self.base.memory_use(model, gpu, shape, precision, chunk_tokens=chunk_tokens)

    def uncertainty_percent(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> float:
        """From the base's without windows towards their own spread with many."""
        base = self.base.uncertainty_percent(model, gpu, shape)
        ratios = self.corrections.by_key.get(self._key(model, gpu, shape))
        if ratios is None or not ratios.decode:
            return base
        trust = _trust(len(ratios.decode))
        return (1.0 - trust) * base + trust * ratios.spread_percent("decode")

    def extrapolations(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> tuple[str, ...]:
        """What is assumed of the model; where no window of this replica was seen all of the base's, and that."""
        key = self._key(model, gpu, shape)
        known = self.corrections.by_key.get(key)
        if known is not None and known.decode:
            return model.assumed
        unseen = f"no live correction learnt on {shape} of {gpu.name} under {self.engine_version}"
        if known is None and (others := self.corrections.of_other_shapes(key)):
            unseen += f": the median of {', '.join(others)} is taken"
        return (*self.base.extrapolations(model, gpu, shape), unseen)

    def _key(self, model: ModelFacts, gpu: GpuFacts, shape: Shape) -> CorrectionKey:
        return CorrectionKey(model.name, gpu.name, str(shape), self.engine_version)
