"""Reading cascades and plans from a cluster, and approving plans: what the kubectl plugin needs of Kubernetes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from cascadia_api.errors import CascadiaError, InputError, Problem
from cascadia_api.names import GROUP, KIND, PLAN_KIND, PLAN_PLURAL, PLURAL, VERSION

__all__ = ["Cluster", "ClusterError"]

_TIMEOUT_SECONDS = 30.0
_RESOURCES = {KIND: PLURAL, PLAN_KIND: PLAN_PLURAL}


class ClusterError(CascadiaError):
    """The cluster cannot be reached, or refuses."""


class Cluster:
    """One namespace of the cluster that the kubeconfig points at.

    Args:
        namespace: Namespace; the context's where None.
        context: Context of the kubeconfig; the current one where None.
        kubeconfig: Path of the kubeconfig; ``$KUBECONFIG`` or the default where None.

    Raises:
        InputError: There is no usable kubeconfig or context.
    """

    def __init__(
        self, *, namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None
    ) -> None:
        import kubernetes
        from kubernetes.config.config_exception import ConfigException
        from yaml import YAMLError

        kubeconfig = kubeconfig or os.environ.get("KUBECONFIG")
        client: Any = kubernetes.client  # its types differ between the releases that we support
        config: Any = kubernetes.config
        try:
            api = config.new_client_from_config(config_file=kubeconfig, context=context)
            contexts, current = config.list_kube_config_contexts(config_file=kubeconfig)
        except (ConfigException, OSError, ValueError, YAMLError, TypeError, AttributeError) as error:
            reason = str(error).rstrip(".") if isinstance(error, ConfigException | OSError) else "it is none"
            advice = "give --kubeconfig and --context, or set KUBECONFIG"
            raise InputError(Problem("kubeconfig", f"{reason}: {advice}")) from None
        chosen = next((c for c in contexts if c["name"] == context), current) if context else current
        self.namespace: str = namespace or chosen["context"].get("namespace") or "default"
        self._objects = client.CustomObjectsApi(api)
        self._authentication = client.AuthenticationV1Api(api)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return a CascadeDeployment or CascadePlan.

        Raises:
            InputError: There is none of this name.
            ClusterError: The cluster cannot be reached, or refuses.
        """
        return self._call(
            f"{kind} {name}",
            lambda: self._objects.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, _RESOURCES[kind], name, _request_timeout=_TIMEOUT_SECONDS
            ),
        )

    def approve(self, plan: str) -> str:
        """Approve a proposed plan; return the name of the user who did.

        Raises:
            InputError: There is no such plan.
            ClusterError: The cluster cannot be reached, or refuses.
        """
        review = self._call(
            "who you are",
            lambda: self._authentication.create_self_subject_review(
                {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
                _request_timeout=_TIMEOUT_SECONDS,
            ).to_dict(),
        )
        user = str(review["status"]["user_info"]["username"])
        self._call(
            f"{PLAN_KIND} {plan}",
            lambda: self._objects.patch_namespaced_custom_object_status(
                GROUP,
                VERSION,
                self.namespace,
                PLAN_PLURAL,
                plan,
                {"status": {"phase": "Approved", "approvedBy": user[:253]}},
                _request_timeout=_TIMEOUT_SECONDS,
            ),
        )
        return user

    def _call(self, what: str, request: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return dict(request())
        except ApiException as error:
            if error.status == 404:
                raise InputError(f"{what} is not in namespace {self.namespace}: check the name, or give -n") from None
            raise ClusterError(f"{what}: the API server says {error.status} {error.reason}{_detail(error)}") from None
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise ClusterError(f"{what}: the API server cannot be reached: {reason}") from None


def _detail(error: Any) -> str:
    try:
        message = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return ""
    return f": {message}"
