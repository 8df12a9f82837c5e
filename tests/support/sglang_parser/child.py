"""Runs in a bare interpreter: builds SGLang's parser with its heavy dependencies stood in for, and parses stdin.

SGLang's argument definitions import torch, transformers and the like for types and checks that parsing
never uses. Every module of theirs is stood in for by an object that takes part in anything and means nothing.
"""

import abc
import argparse
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import io
import json
import sys
import types

HEAVY = (
    *("torch", "triton", "IPython", "PIL", "zmq", "orjson", "pybase64", "numpy", "requests", "starlette", "aiohttp"),
    *("tqdm", "psutil", "pydantic", "pydantic_core", "huggingface_hub", "transformers", "fastapi", "uvicorn"),
)
# Accelerators that a machine without them does not have as attributes of torch either.
ABSENT = frozenset({"npu", "xpu", "musa", "hpu", "mps"})
OPERATORS = (
    *(
        "neg",
        "pos",
        "invert",
        "abs",
        "add",
        "radd",
        "sub",
        "rsub",
        "mul",
        "rmul",
        "matmul",
        "mod",
        "rmod",
        "pow",
        "rpow",
    ),
    *("truediv", "rtruediv", "floordiv", "rfloordiv", "and", "rand", "or", "ror", "xor", "rxor", "lshift", "rshift"),
)


class Nothing:
    """Takes any call, attribute, item and operator."""

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        # As a decorator it leaves the function as it is.
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else Nothing()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __getitem__(self, key):
        return Nothing()

    def __setitem__(self, key, value):
        pass

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0

    def __bool__(self):
        return False

    def __lt__(self, other):
        return False

    __gt__ = __le__ = __ge__ = __lt__

    def __hash__(self):
        return id(self)

    def __eq__(self, other):
        return self is other

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return False

    def __mro_entries__(self, bases):
        return (object,)

    def __int__(self):
        return 0

    __index__ = __int__


for _operator in OPERATORS:
    setattr(Nothing, f"__{_operator}__", lambda self, *args: self)


class NothingType(abc.ABCMeta):
    """Type of the classes that stand-in modules have."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()


class StandIn(types.ModuleType):
    """A module that has whatever is asked of it."""

    def __getattr__(self, name):
        if name in ABSENT or (name.startswith("__") and name != "__version__"):
            raise AttributeError(name)
        if name == "__version__":
            return "99.0.0"
        value = NothingType(name, (Nothing,), {"__module__": self.__name__}) if name[:1].isupper() else Nothing()
        setattr(self, name, value)
        return value


class StandInFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for each heavy module."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in HEAVY:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def build_parser(folder):
    """SGLang's parser, abbreviations off."""
    sys.path.insert(0, folder)
    sys.meta_path.insert(0, StandInFinder())
    for name in (
        "torch.nn.functional",
        "torch.distributed",
        "torch.cuda",
        "torch.version",
        "torch.library",
        "triton.language",
    ):
        parts = name.split(".")
        for depth in range(2, len(parts) + 1):
            module = importlib.import_module(".".join(parts[:depth]))
            setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], module)
    sys.modules["torch.version"].cuda = sys.modules["torch.version"].hip = None
    # sglang/__init__ imports the whole runtime: an empty package with its path stands in for it.
    spec = importlib.machinery.PathFinder.find_spec("sglang")
    package = types.ModuleType("sglang")
    package.__path__, package.__spec__ = list(spec.submodule_search_locations), spec
    sys.modules["sglang"] = package
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(allow_abbrev=False, prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    return parser


def parse_one(parser, line):
    """Values, or the parser's error."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            values = vars(parser.parse_args(line))
    except SystemExit:
        return {"values": {}, "error": complaint.getvalue().strip().splitlines()[-1]}
    plain = {name: value for name, value in values.items() if isinstance(value, (str, int, float, bool, type(None)))}
    return {"values": plain, "error": ""}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        its_parser = build_parser(sys.argv[1])
    print(json.dumps([parse_one(its_parser, line) for line in json.load(sys.stdin)]))
