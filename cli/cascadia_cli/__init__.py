"""The command line: `cascadia`, and the kubectl plugin `kubectl-cascadia`."""
