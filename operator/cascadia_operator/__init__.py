"""The Kubernetes operator: from a CascadeDeployment to running engines and routers, level-triggered."""
