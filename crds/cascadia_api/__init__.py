"""The contract between Cascadia's parts.

Two families of types live here:

* pydantic models for what people write and read (`cascade`, `plan`, `status`); the custom resource
  definitions are generated from them (`crd`);
* msgspec structs for what the data plane reads and writes (`policy`, `report`): the router loads
  neither pydantic nor this package's heavier modules, which keeps a sidecar small and quick to start.

Import the module that you need; this file imports nothing.
"""

__version__ = "0.1.0"
