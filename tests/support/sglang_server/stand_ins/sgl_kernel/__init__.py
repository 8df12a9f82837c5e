"""Stands in for sgl-kernel, which has no CPU build: what is asked of it can be imported, and not called."""

__version__ = "0.0.0"


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name}")

    missing.__name__ = name
    return missing
