"""Manifests: what is accepted, and that each wrong one is named by its field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cascadia_api.errors import InputError
from cascadia_api.load import field_path, load_manifest
from tests.support.manifests import BROKEN, Broken, cascade_manifest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_valid(path: Path) -> None:
    manifest = load_manifest(path.read_text(), path.name)
    assert manifest.cascade.spec.models


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: b.id)
def test_broken_manifests_are_refused_with_field_and_words(broken: Broken) -> None:
    with pytest.raises(InputError) as caught:
        load_manifest(yaml.safe_dump(broken.document()), "chat.yaml")
    [problem] = caught.value.problems
    assert problem.field == broken.field
    assert broken.message in problem.message
    assert caught.value.source == "chat.yaml"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"pattern": "(a"}, "pattern", "no usable regular expression"),
        ({"pattern": r"(a)\1"}, "pattern", "no look-around or back-reference"),
        ({"jsonSchema": "{]"}, "jsonSchema", "no usable JSON Schema"),
        ({"jsonSchema": '{"type": "colour"}'}, "jsonSchema", "colour"),
        ({"jsonSchema": '{"$ref": "http://127.0.0.1:9/x"}'}, "jsonSchema", "not followed"),
    ],
)
def test_checks_that_routers_could_not_make_are_refused(options: dict[str, str], field: str, words: str) -> None:
    document = cascade_manifest(routing={"scorer": {"type": "Validator", "validator": options}})
    with pytest.raises(InputError) as caught:
        load_manifest(yaml.safe_dump(document), "chat.yaml")
    [problem] = caught.value.problems
    assert problem.field == f"spec.routing.scorer.validator.{field}"
    assert words in problem.message


def test_every_problem_is_named_at_once() -> None:
    document = cascade_manifest()
    document["spec"]["models"][0]["name"] = "Small"
    document["spec"]["objective"] = {"minQuality": "0.8", "minimise": "Cost"}
    with pytest.raises(InputError) as caught:
        load_manifest(yaml.safe_dump(document), "x")
    assert {p.field for p in caught.value.problems} == {"spec.models[0].name", "spec.objective.minimise"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found nothing"),
        ("kind: Pod", "found Pod"),
        ("- 1", "expected a Kubernetes object, found list"),
        ("a: [1", "not valid YAML: line 1"),
        ("a: 1\na: 2", "the key 'a' stands twice"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
        (yaml.safe_dump_all([cascade_manifest(), cascade_manifest()]), "found CascadeDeployment, CascadeDeployment"),
    ],
)
def test_files_that_hold_no_cascade(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load_manifest(text, "chat.yaml")
    assert words in str(caught.value)


def test_calibration_lines_of_the_same_file() -> None:
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "chat-calibration"},
        "data": {"b.jsonl": "3\n", "a.jsonl": "1\n2\n", "README": "no"},
    }
    cascade = cascade_manifest(calibration={"configMapRef": {"name": "chat-calibration"}})
    assert load_manifest(yaml.safe_dump_all([config_map, cascade]), "x").calibration == ("1", "2", "3")
    config_map["metadata"] = {"name": "another"}
    assert load_manifest(yaml.safe_dump_all([config_map, cascade]), "x").calibration is None


def test_equal_decimal_strings_are_equal_in_rules() -> None:
    objective = {"minQuality": "0.85", "minQualityOverloaded": "0.850"}
    assert load_manifest(yaml.safe_dump(cascade_manifest(objective=objective)), "x")


def test_field_path() -> None:
    assert field_path(["spec", "models", 1, "name"]) == "spec.models[1].name"
    assert field_path(["models", 0], "spec") == "spec.models[0]"
