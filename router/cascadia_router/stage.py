"""One stage of a policy as the request path wants it: what it takes, where it is, and what its answers say."""

from __future__ import annotations

from cascadia_api.policy import StagePolicy
from cascadia_router.balancing import Targets
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.decision import DecisionText

__all__ = ["Stage"]


class Stage:
    """One live stage of a policy, ready for use.

    Attributes:
        at_once: What its answers say to requests that came to it first.
        answered: A client's request that it answered, as `Settlement.ends` names it.
        index: Place in the cascade, from 0.
        name: Stage name.
        policy: As written.
        served_model: The engine's name for the model.
        threshold: Least score that is accepted; None: every answer is.
        targets: Its replicas with their weights, where they are now.
        live: The same by the newest policy that has any: where to send what is sent now.
    """

    __slots__ = (
        "_capabilities",
        "_context_window",
        "_decisions",
        "_plan",
        "answered",
        "at_once",
        "index",
        "live",
        "name",
        "policy",
        "served_model",
        "targets",
        "threshold",
    )

    def __init__(self, index: int, policy: StagePolicy, plan: tuple[str, int, int | None]) -> None:
        self.index = index
        self.policy = policy
        self.name = policy.name
        self.threshold = policy.threshold
        self.served_model = policy.served_model_name
        self.targets = Targets()
        self.answered = ("client", policy.name, "answered")
        self.at_once = DecisionText(self.name, self.threshold, (), *plan)
        self.live = self.targets
        self._plan = plan
        self._decisions: dict[tuple[str, ...], DecisionText] = {}
        self._context_window = policy.context_window
        self._capabilities = frozenset(policy.capabilities)

    def decision(self, path: tuple[str, ...]) -> DecisionText:
        """What its answers say after the stages in `path` were rejected."""
        found = self._decisions.get(path)
        if found is None:
            found = self._decisions[path] = DecisionText(self.name, self.threshold, path, *self._plan)
        return found

    def can_answer(self, request: CompletionRequest) -> bool:
        """Whether the request fits the model's context window and capabilities."""
        if request.needs and not request.needs <= self._capabilities:
            return False
        return self._context_window is None or request.tokens <= self._context_window
