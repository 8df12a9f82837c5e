"""Calibration sets from public results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cascadia_api.errors import InputError
from cascadia_api.load import load_manifest
from cascadia_cli.calibration_file import read_calibration
from cascadia_solver.calibration import CalibrationRow, parse_calibration
from cascadia_solver.importers import import_wildbench, import_zeroeval
from tests.support.planning import data_file

HEADER = "dataset,id,model,correct,parsed,prompt_chars,output_chars"
STAGES = {"small": "A-8B", "large": "A-70B"}


def results(questions: int = 3000) -> Iterator[str]:
    random = np.random.default_rng(2)
    yield HEADER
    for number in range(questions):
        yield f"gsm,q{number},A-8B,{int(random.random() < 0.7)},1,460,920"
        yield f"gsm,q{number},A-70B,{int(random.random() < 0.9)},1,460,46"
    yield "gsm,lonely,A-8B,1,1,460,920"


def test_scores_have_the_stated_auroc() -> None:
    table, problems = parse_calibration(
        import_zeroeval(results(), STAGES, auroc={"small": 0.72, "large": 0.9}),
        models=list(STAGES),
        scorer="logprob-mean",
    )
    assert [str(problem) for problem in problems] == ["line 6002: question 'lonely' has no answer of A-70B"]
    assert len(table) == 3000
    assert 0 < table.scores.min() < table.scores.max() < 1
    for column, auroc in enumerate((0.72, 0.9)):
        right, wrong = (table.scores[table.quality[:, column] == worth, column] for worth in (1, 0))
        assert (right[:, None] > wrong[None, :]).mean() == pytest.approx(auroc, abs=0.02)


def test_tokens_follow_characters_and_only_common_questions_are_taken() -> None:
    made = import_zeroeval(results(5), STAGES, auroc=0.8)
    rows = [msgspec.json.decode(line, type=CalibrationRow) for line in made if isinstance(line, bytes)]
    assert [row.id for row in rows] == [f"q{k}" for k in range(5)]
    assert rows[0].input_tokens == 100
    assert (rows[0].answers["small"].output_tokens, rows[0].answers["large"].output_tokens) == (200, 10)


def test_scores_depend_on_the_seed_alone() -> None:
    first = list(import_zeroeval(results(20), STAGES, auroc=0.8, seed=1))
    assert first == list(import_zeroeval(results(20), STAGES, auroc=0.8, seed=1))
    assert first != list(import_zeroeval(results(20), STAGES, auroc=0.8, seed=2))


@pytest.mark.parametrize(
    ("stages", "auroc", "message"),
    [
        ({"small": "B"}, 0.8, "no model B; it has A-70B, A-8B"),
        (STAGES, 1.2, "AUROC of stage 'small' is 1.2"),
        (STAGES, {"small": 0.8}, "AUROC of stage 'large' is nan"),
    ],
)
def test_wrong_requests_are_refused(stages: dict[str, str], auroc: float | dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(import_zeroeval(results(5), stages, auroc=auroc))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("gsm,q0,A-8B,2,1,460,920", "line 3: correct of A-8B is '2'; it must lie between 0 and 1"),
        ("gsm,q0,A-8B,-1,1,460,920", "line 3: correct of A-8B is '-1'"),
        ("gsm,q0,A-8B,nan,1,460,920", "line 3: correct of A-8B is 'nan'"),
        ("gsm,q0,A-8B,1,1,-5,920", "line 3: prompt_chars of A-8B is '-5'"),
        ("gsm,q0,A-8B,1,1,460,1e308", "line 3: output_chars of A-8B is '1e308'; it must lie between 0 and"),
        ("gsm,,A-8B,1,1,460,920", "line 3: it has no id"),
        ("gsm,q1,A-8B,1,1,460,920", "line 5: question 'q1' of A-8B stands on line 3 already: that one counts"),
    ],
)
def test_rows_that_cannot_be_meant_are_named_and_left_out(row: str, message: str) -> None:
    text = [*results(3)]
    made = list(import_zeroeval([HEADER, text[2].replace("q0", "q2"), row, text[2], *text[3:5]], STAGES, auroc=0.8))
    problems = [str(line) for line in made if not isinstance(line, bytes)]
    assert any(problem.startswith(message) for problem in problems), problems
    assert sum(b'"id":"q1"' in line for line in made if isinstance(line, bytes)) == 1


def test_results_without_a_usable_question_are_refused() -> None:
    with pytest.raises(InputError, match=r"no question .* A-8B, A-70B: 2 rows were skipped .* correct of A-8B is '7'"):
        list(import_zeroeval([HEADER, "g,q,A-8B,7,1,9,9", "g,q,A-70B,1,1,9,9", "g,p,A-8B,1,1,9,9"], STAGES, auroc=0.8))


def test_planning_says_that_imported_scores_are_simulated(tmp_path: Path) -> None:
    manifest = load_manifest((Path(__file__).parents[2] / "examples" / "pair.yaml").read_text(), "pair.yaml")
    path = tmp_path / "set.jsonl"
    made = import_zeroeval(results(60), STAGES, auroc=0.8)
    path.write_bytes(b"".join(line + b"\n" for line in made if isinstance(line, bytes)))
    (note,) = read_calibration(manifest, "pair.yaml", str(path))[1]
    assert note.startswith("the set's scores are simulated")
    path.write_bytes(path.read_bytes().replace(b',"scoresSimulated":true', b""))
    assert read_calibration(manifest, "pair.yaml", str(path))[1] == []


def test_a_file_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="lacks the columns id, model"):
        list(import_zeroeval(["a,b", "1,2"], STAGES, auroc=0.8))


def test_real_zeroeval_results() -> None:
    stages = {
        "small": "Meta-Llama-3.1-8B-Instruct",
        "medium": "Meta-Llama-3.1-70B-Instruct",
        "large": "Llama-3.1-405B-Instruct-Turbo",
    }
    with data_file("quality", "zeroeval_gsm8k.csv").open() as file:
        table, problems = parse_calibration(
            import_zeroeval(file, stages, auroc=0.75), models=list(stages), scorer="logprob-mean"
        )
    assert problems == []
    assert table.scores_simulated
    assert len(table) > 1300
    assert table.quality.mean(axis=0) == pytest.approx([0.840, 0.942, 0.959], abs=0.01)


def test_real_wildbench_results() -> None:
    stages = {"edge": "reka-edge", "flash": "reka-flash-20240226", "core": "reka-core-20240501"}
    with data_file("quality", "wildbench_v2.0625_gpt4o_scores.csv").open() as file:
        text = file.readlines()
    known = {line.split(",")[1] for line in text[1:]}
    stages = {stage: next(name for name in known if name.startswith(f"reka-{stage}")) for stage in stages}
    table, _ = parse_calibration(import_wildbench(text, stages, auroc=0.75), models=list(stages), scorer="logprob-mean")
    assert len(table) > 900
    assert ((table.quality >= 0) & (table.quality <= 1)).all()
    assert (np.diff(table.quality.mean(axis=0)) > 0).all()
    assert np.median(table.input_tokens) > 10
