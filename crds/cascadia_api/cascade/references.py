"""Objects in the manifest's namespace that it refers to. Secrets are mounted into pods; the operator reads none."""

from __future__ import annotations

from pydantic import Field

from cascadia_api.schema import ApiModel, Text

__all__ = ["ApiKeysReference", "LocalObjectReference", "SecretKeyReference", "SecretName"]


class LocalObjectReference(ApiModel):
    """Reference to an object in the same namespace."""

    name: Text = Field(description="Name of the object.")


class SecretName(ApiModel):
    """Reference to a Secret in the same namespace. Mounted into pods; never read by the operator."""

    name: Text = Field(description="Name of the Secret.")


class SecretKeyReference(ApiModel):
    """Reference to one key of a Secret in the same namespace. Mounted into pods; never read by the operator."""

    name: Text = Field(description="Name of the Secret.")
    key: Text = Field(description="Key in the Secret.")


class ApiKeysReference(ApiModel):
    """Reference to a Secret with API keys in the same namespace. Mounted into pods; never read by the operator."""

    name: Text = Field(description="Name of the Secret.")
    key: Text | None = Field(
        None, description="Its only entry that holds API keys; where absent every entry does, and its key is their id."
    )
