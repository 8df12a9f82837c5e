"""Which models can take which requests, by the routers' rule.

A request passes a stage by if its prompt and answer together exceed the model's context window, or if it
needs something that the model cannot do (tools, images, audio, JSON schemas). It goes to the first later
stage that can take it; one that no later stage can take goes to the last, which then refuses it. So every
stage but the last is visited by able requests only, and what the last one cannot take is worth nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.catalogue.models import ModelFacts

__all__ = ["CAPABILITIES", "able_models", "drawn_needs", "needs_mask", "needs_shares"]

Floats = NDArray[np.float64]
Masks = NDArray[np.uint8]
Bools = NDArray[np.bool_]

CAPABILITIES = ("tools", "images", "audio", "json-schema")
"""What a request may need beyond text; bit k of a mask stands for the k-th."""


def needs_mask(words: Collection[str]) -> int:
    """Return the mask of what a request needs.

    Raises:
        ValueError: A word that is not a capability.
    """
    if unknown := sorted(set(words) - set(CAPABILITIES)):
        raise ValueError(f"needs names {unknown[0]!r}; a request may need {', '.join(CAPABILITIES)}")
    return sum(1 << bit for bit, word in enumerate(CAPABILITIES) if word in words)


def needs_shares(needs: Masks) -> dict[str, float]:
    """Share of the requests that need each capability, of those that any needs."""
    shares = {word: float((needs >> bit & 1).mean()) for bit, word in enumerate(CAPABILITIES)}
    return {word: share for word, share in shares.items() if share > 0}


def drawn_needs(shares: Mapping[str, float], count: int, random: np.random.Generator) -> Masks:
    """Deal needs to requests so that each share is met to within one request, independently of one another.

    Args:
        shares: By capability, 0 to 1.
        count: Requests.
        random: Which requests they fall on.
    """
    needs = np.zeros(count, dtype=np.uint8)
    for bit, word in enumerate(CAPABILITIES):
        chosen = random.permutation(count)[: round(shares.get(word, 0.0) * count)]
        needs[chosen] |= np.uint8(1 << bit)
    return needs


def able_models(
    facts: Sequence[ModelFacts], input_tokens: Floats, output_tokens: Floats, needs: Masks | None
) -> Bools | None:
    """Say which models can take which requests.

    Args:
        facts: Of C models.
        input_tokens: Prompt lengths [n].
        output_tokens: Answer lengths of each model [n, C].
        needs: What each request needs [n]; None where none needs anything.

    Returns:
        [n, C]; None if every model can take every request.
    """
    windows = np.array([model.context_window for model in facts])
    if needs is None and input_tokens.max() + output_tokens.max() <= windows.min():
        return None
    able = input_tokens[:, None] + output_tokens <= windows
    if needs is not None:
        can = np.array([_mask(model.capabilities) for model in facts], dtype=np.uint8)
        able &= (needs[:, None] & ~can[None, :]) == 0
    return None if able.all() else able


def _mask(capabilities: Iterable[str]) -> int:
    return needs_mask([word for word in capabilities if word in CAPABILITIES])
