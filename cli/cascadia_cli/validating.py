"""`cascadia validate`: what the API server would refuse, and what planning could not use."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InputError, Problem
from cascadia_cli.calibration_file import read_calibration
from cascadia_cli.failures import problem_line, say
from cascadia_cli.files import read_manifest

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
    from cascadia_solver.catalogue.manifest import gpu_of, model_of
    from cascadia_solver.engine_settings import settings_of

    problems: list[Problem] = []
    for index, model in enumerate(cascade.spec.models):
        try:
            model_of(model)
            settings_of(cascade.spec, model)
        except InputError as error:
            problems += error.below(f"spec.models[{index}]").problems
    for index, pool in enumerate(cascade.spec.gpus.pools):
        try:
            gpu_of(pool)
        except InputError as error:
            problems += error.below(f"spec.gpus.pools[{index}]").problems
    return problems


def _summary(cascade: CascadeDeployment) -> str:
    spec = cascade.spec
    models = " → ".join(model.name for model in spec.models)
    pools = ", ".join(f"{pool.max_gpus} {pool.gpu}" for pool in spec.gpus.pools)
    return f"{cascade.metadata.name}: {models} on up to {pools}, quality at least {spec.objective.min_quality}"
