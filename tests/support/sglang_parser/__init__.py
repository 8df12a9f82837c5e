"""SGLang's own command-line parser, without the gigabytes that SGLang itself needs: see `parse`."""

from tests.support.sglang_parser.install import SGLANG_VERSION, InstallError, ensure_sglang
from tests.support.sglang_parser.run import Parsed, parse

__all__ = ["SGLANG_VERSION", "InstallError", "Parsed", "ensure_sglang", "parse"]
