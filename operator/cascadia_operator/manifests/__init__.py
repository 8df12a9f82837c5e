"""Pure builders: from a cascade and its plan to the manifests of its children, as plain dictionaries."""
