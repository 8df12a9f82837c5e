"""Reading a manifest file: YAML in, a `CascadeDeployment` or named problems out."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from cascadia_api.cascade import CascadeDeployment, CascadeDeploymentSpec
from cascadia_api.errors import InputError, Problem
from cascadia_api.names import API_VERSION, KIND
from cascadia_api.schema import DECIMAL_PATTERN

__all__ = [
    "Manifest",
    "corrections_text",
    "field_path",
    "load_manifest",
    "load_yaml",
    "parse_cascade",
    "parse_spec",
    "problems_of",
    "text_lines",
]

_EXPLAINED_BY = "kubectl explain cascadedeployment.spec"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest file's content.

    Attributes:
        cascade: The CascadeDeployment in it.
        calibration: Calibration lines of the ConfigMap that it refers to, where the file holds that too.
        corrections: What the ConfigMap of its corrections holds, JSON, where the file holds that too.
    """

    cascade: CascadeDeployment
    calibration: tuple[str, ...] | None = None
    corrections: str | None = None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys: the second would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice in one mapping: remove one", key_node.start_mark
                )
            if isinstance(key, (str, int)):
                seen.add(key)
        return super().construct_mapping(node, deep)


def load_manifest(text: str, source: str) -> Manifest:
    """Read a manifest file that holds one CascadeDeployment, and perhaps the ConfigMaps that it refers to.

    Args:
        text: The file's content, YAML or JSON, one or several documents.
        source: The file's name, for errors.

    Raises:
        InputError: It is not YAML, holds no CascadeDeployment or several, or some field is wrong.
    """
    documents = [d for d in load_yaml(text, source) if d is not None]
    for document in documents:
        if not isinstance(document, dict):
            raise InputError(f"expected a Kubernetes object, found {type(document).__name__}", source=source)
    cascades = [d for d in documents if d.get("kind") == KIND]
    if len(cascades) != 1:
        kinds = ", ".join(str(d.get("kind", "an object without kind")) for d in documents) or "nothing"
        raise InputError(
            f"expected exactly one object with apiVersion: {API_VERSION} and kind: {KIND}, found {kinds}", source=source
        )
    try:
        cascade = parse_cascade(cascades[0])
    except InputError as error:
        raise error.within(source) from None
    calibration, planning = cascade.spec.calibration, cascade.spec.planning
    corrections = planning.corrections if planning is not None else None
    try:
        lines = _data_of(documents, calibration.config_map_ref.name) if calibration is not None else None
        learnt = _data_of(documents, corrections.config_map_ref.name) if corrections is not None else None
        return Manifest(
            cascade,
            None if lines is None else tuple(calibration_lines(lines)),
            None if learnt is None else corrections_text(learnt),
        )
    except InputError as error:
        raise error.within(source) from None


def load_yaml(text: str, source: str) -> list[Any]:
    """Return the documents of a YAML or JSON file; no key may stand twice in one mapping.

    Raises:
        InputError: It is neither.
    """
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {_one_line(error)}", source=source) from None
    except RecursionError:
        raise InputError("not valid YAML: it is nested too deeply: is it the right file?", source=source) from None
    except ValueError as error:  # what looks like a date or a number, and cannot be one
        raise InputError(f"not valid YAML: {str(error).split(';')[0]}: write it in quotes", source=source) from None


def _data_of(documents: Sequence[dict[str, Any]], name: str) -> dict[str, str] | None:
    """Data of the ConfigMap of this name, if there is one.

    Raises:
        InputError: Its data are not texts.
    """
    for document in documents:
        metadata = document.get("metadata")
        if document.get("kind") == "ConfigMap" and isinstance(metadata, dict) and metadata.get("name") == name:
            data = document.get("data") or {}
            if not isinstance(data, dict) or not all(isinstance(t, str) for each in data.items() for t in each):
                raise InputError(Problem(f"ConfigMap {name}: data", "must map names of files to texts (key: |)"))
            return data
    return None


def corrections_text(data: Mapping[str, str]) -> str:
    """The file of corrections in a ConfigMap's data: its only key that ends in ``.json``.

    Raises:
        InputError: There is none, or several.
    """
    keys = [key for key in sorted(data) if key.endswith(".json")]
    if len(keys) != 1:
        there = f"it has {', '.join(keys)}" if keys else "it has none"
        raise InputError(
            Problem(
                "spec.planning.corrections",
                f"its ConfigMap needs exactly one key that ends in .json, the file of corrections: {there}",
            )
        )
    return data[keys[0]]


def calibration_lines(data: dict[str, str]) -> Iterator[str]:
    """Calibration lines of a ConfigMap's data: keys that end in ``.jsonl``, in order of their names."""
    for key in sorted(data):
        if key.endswith(".jsonl"):
            yield from text_lines(data[key])


def text_lines(text: str) -> list[str]:
    r"""Lines of a text file: ended by \n, \r\n or \r. A byte order mark before the first is dropped.

    `str.splitlines` also ends lines at U+2028, U+0085 and the like, which may stand in the strings of JSON lines.
    """
    plain = io.StringIO(text.removeprefix("\ufeff"), newline=None).read()
    return plain.removesuffix("\n").split("\n") if plain else []


def parse_cascade(document: dict[str, Any]) -> CascadeDeployment:
    """Validate one object.

    Raises:
        InputError: With one problem for each wrong field.
    """
    try:
        return CascadeDeployment.model_validate(document)
    except ValidationError as error:
        raise InputError(problems_of(error, explained_by=_EXPLAINED_BY)) from None


def parse_spec(document: dict[str, Any]) -> CascadeDeploymentSpec:
    """Validate a spec alone, fields named from ``spec``.

    Raises:
        InputError: With one problem for each wrong field.
    """
    try:
        return CascadeDeploymentSpec.model_validate(document)
    except ValidationError as error:
        raise InputError(problems_of(error, root="spec", explained_by=_EXPLAINED_BY)) from None


def problems_of(error: ValidationError, root: str = "", explained_by: str = "") -> list[Problem]:
    """Name each wrong field of a failed validation, once.

    Args:
        error: What pydantic found.
        root: Where the validated document lies, as in ``spec``.
        explained_by: What tells which fields there are.
    """
    problems: list[Problem] = []
    for item in error.errors(include_url=False):
        location = list(item["loc"])
        kind, context = item["type"], item.get("ctx") or {}
        message = item["msg"]
        if kind == "missing":
            message = "is required: add it"
        elif kind == "extra_forbidden":
            explained = f" ({explained_by})" if explained_by else ""
            message = f"unknown field: remove it, or mend its spelling{explained}"
        elif kind == "rule":
            location += [part for part in str(context.get("field", "")).split(".") if part]
        elif kind == "string_pattern_mismatch":
            message = f"{item['input']!r} does not match {context.get('pattern')}"
            if context.get("pattern") == DECIMAL_PATTERN:
                message = f"{item['input']!r} is not a decimal number of at least 0, as in '12.5'"
                if re.fullmatch(r"[0-9]+(\.[0-9]+)?", str(item["input"])):
                    message = f"{item['input']!r} has too many digits: use at most 9 before the point and 6 after it"
        elif kind == "literal_error":
            message = f"{item['input']!r} is not one of {context.get('expected')}"
        problem = Problem(field_path(location, root), message)
        if problem not in problems:
            problems.append(problem)
    return problems


def field_path(location: list[str | int], root: str = "") -> str:
    """``['spec', 'models', 1, 'name']`` as ``spec.models[1].name``."""
    path = root
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path


def _one_line(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
