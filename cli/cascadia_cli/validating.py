"""`cascadia validate`: what the API server would refuse, and what planning could not use."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from cascadia_api.cascade import CascadeDeployment, Model
from cascadia_api.errors import InputError, Problem
from cascadia_cli.failures import problem_line, say
from cascadia_cli.files import read_calibration, read_manifest

__all__ = ["catalogue_problems", "print_validation"]


def print_validation(files: Sequence[str], *, as_json: bool) -> int:
    """Check manifests, print what was found, and return the exit code: 2 if any is wrong."""
    results = []
    for file in files:
        cascade, problems = _check(file)
        results.append(
            {
                "file": file,
                "valid": not problems,
                "problems": [{"field": p.field, "message": p.message} for p in problems],
            }
        )
        say(*(problem_line(problem, file) for problem in problems))
        if cascade is not None and not problems and not as_json:
            sys.stdout.write(f"{file}: valid: {_summary(cascade)}\n")
    if as_json:
        sys.stdout.write(json.dumps({"schemaVersion": 1, "results": results}, indent=2, ensure_ascii=False) + "\n")
    return 0 if all(result["valid"] for result in results) else InputError.exit_code


def _check(file: str) -> tuple[CascadeDeployment | None, Sequence[Problem]]:
    try:
        manifest = read_manifest(file)
        problems = catalogue_problems(manifest.cascade)
        if manifest.calibration is not None:
            read_calibration(manifest, file, None)
    except InputError as error:
        return None, error.problems
    return manifest.cascade, problems


def catalogue_problems(cascade: CascadeDeployment) -> list[Problem]:
    """Models and GPUs that the planner does not know."""
    from cascadia_solver.catalogue.gpus import gpu_facts
    from cascadia_solver.catalogue.models import model_facts

    problems: list[Problem] = []
    for index, model in enumerate(cascade.spec.models):
        field, name = _architecture(model)
        field = f"spec.models[{index}].source.{field}"
        if name is None:
            problems.append(Problem(field, "planning needs the architecture of these weights: name a repository of it"))
            continue
        try:
            model_facts(name)
        except InputError as error:
            problems.append(Problem(field, str(error)))
    for index, pool in enumerate(cascade.spec.gpus.pools):
        try:
            gpu_facts(pool.gpu)
        except InputError as error:
            problems.append(Problem(f"spec.gpus.pools[{index}].gpu", str(error)))
    return problems


def _architecture(model: Model) -> tuple[str, str | None]:
    """The field of a model's source that says its architecture, and what it says."""
    if model.source.hugging_face is not None:
        return "huggingFace.repo", model.source.hugging_face.repo
    return "pvc.architecture", model.source.pvc.architecture if model.source.pvc else None


def _summary(cascade: CascadeDeployment) -> str:
    spec = cascade.spec
    models = " → ".join(model.name for model in spec.models)
    pools = ", ".join(f"{pool.max_gpus} {pool.gpu}" for pool in spec.gpus.pools)
    return f"{cascade.metadata.name}: {models} on up to {pools}, quality at least {spec.objective.min_quality}"
