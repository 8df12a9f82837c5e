"""Calibration sets as tables: the same set as its JSON lines, the same care with wrong rows."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from cascadia_api.errors import InputError
from cascadia_cli.main import main
from cascadia_solver.calibration import CalibrationSet, parse_calibration
from cascadia_solver.flat_calibration import lines_of_csv, lines_of_table
from tests.support.manifests import cascade_manifest

MODELS = ["small", "large"]
COLUMNS = ["id", "inputTokens", "note"] + [
    f"answers.{model}.{field}"
    for model in MODELS
    for field in ("quality", "outputTokens", "scores.logprob-mean", "scores.logprob-mean@32")
]


def table(count: int = 60) -> list[list[Any]]:
    source = random.Random(3)
    rows = []
    for number in range(count):
        answers = [[float(source.random() < 0.8), 10 + number, source.random(), source.random()] for _ in MODELS]
        rows.append([f"q{number}", 100 + number, "any, thing", *answers[0], *answers[1]])
    return rows


def csv_text(rows: list[list[Any]], columns: list[str] = COLUMNS) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def json_lines(rows: list[list[Any]]) -> list[str]:
    lines = []
    for identifier, tokens, _, *rest in rows:
        answers = {
            model: {"quality": q, "outputTokens": o, "scores": {"logprob-mean": s, "logprob-mean@32": early}}
            for model, (q, o, s, early) in zip(MODELS, (rest[:4], rest[4:]), strict=True)
        }
        lines.append(json.dumps({"id": identifier, "inputTokens": tokens, "answers": answers}))
    return lines


def parsed(lines: Any) -> CalibrationSet:
    found, problems = parse_calibration(lines, models=MODELS, scorer="logprob-mean")
    assert problems == []
    return found


def test_a_table_is_the_same_set_as_its_json_lines() -> None:
    rows = table()
    expected = parsed(json_lines(rows))
    assert parsed(lines_of_csv(csv_text(rows).splitlines())).digest == expected.digest
    assert parsed(lines_of_csv(("\ufeff" + csv_text(rows)).splitlines())).digest == expected.digest
    assert parsed(lines_of_table(COLUMNS, rows)).digest == expected.digest


def test_wrong_rows_are_named_by_their_line_and_skipped() -> None:
    text = csv_text(table()).splitlines()
    text[2] = text[2].replace("any, thing", "x").replace("101,", "many,")
    text[3] = "q2,5"
    text[4] = "q3,103,x,1.5,10,0.5,0.5,1,10,0.5,0.5"
    text[5] = "q4,104,x,1,10,,0.5,1,10,,"
    text[7] = text[7].replace("106,", "inf,")
    text.insert(6, "")
    text.append("q1000,104,x,1,10,0.5,0.5,1,10,,")  # the last model needs no score
    found, problems = parse_calibration(lines_of_csv(text), models=MODELS, scorer="logprob-mean")
    assert len(found) == 56
    assert [str(problem) for problem in problems] == [
        "line 3: inputTokens is 'many', not a number",
        "line 4: 2 cells for 11 columns",
        "line 5: answers.small.quality is 1.5; it must lie between 0 and 1",
        "line 6: answers.small.scores['logprob-mean'] is missing",
        "line 9: inputTokens is 'inf', not a finite number",
    ]


def test_values_of_a_table_that_are_no_figures_or_words_are_named() -> None:
    rows = [[*row, None] for row in table(52)]
    rows[1][-1], rows[2][1], rows[3][-1] = 5.0, 10**400, ["tools"]
    found, problems = parse_calibration(lines_of_table([*COLUMNS, "needs"], rows), models=MODELS, scorer="logprob-mean")
    assert len(found) == 50
    assert [str(problem)[:40] for problem in problems] == [
        "line 2: needs is 5.0, no words",
        f"line 3: inputTokens is {10**400}"[:40],
    ]


def test_rows_of_several_lines_keep_the_count_of_lines() -> None:
    rows = table(52)
    rows[0][2] = "a note\nof two lines"
    rows[1][1] = 0
    _, problems = parse_calibration(lines_of_csv(io.StringIO(csv_text(rows))), models=MODELS, scorer="logprob-mean")
    assert [(problem.line, problem.message.split(";")[0]) for problem in problems] == [(4, "inputTokens is 0.0")]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ([], "lacks the columns id, inputTokens, answers.small.quality, answers.small.outputTokens; it has none"),
        (["id;inputTokens"], "it has id;inputTokens; its columns are separated by semicolons: save it with commas"),
        (["id\tinputTokens"], "its columns are separated by tabs"),
        ([*COLUMNS[:3], *COLUMNS[4:]], "lacks the columns answers.small.quality"),
        ([*COLUMNS, "id"], "has the column id twice"),
    ],
)
def test_a_wrong_header_is_refused(columns: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        list(lines_of_csv([",".join(columns)]))
    assert said in str(caught.value)


def test_planning_reads_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, calibration = tmp_path / "chat.yaml", tmp_path / "set.CSV"
    manifest.write_text(yaml.safe_dump(cascade_manifest(objective={"minQuality": "0.5"})))
    calibration.write_text(csv_text(table(300)))
    assert main(["plan", str(manifest), "--calibration", str(calibration), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["quality"]["source"] == "Calibration"


def test_parquet_is_read_where_pyarrow_is_installed(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'cascadia[parquet]'")
    from pyarrow import parquet

    from cascadia_cli.calibration_file import calibration_lines

    rows = table()
    path = tmp_path / "set.parquet"
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    parquet.write_table(pyarrow.table(columns), path)
    assert parsed(calibration_lines(str(path))).digest == parsed(json_lines(rows)).digest
    path.write_bytes(b"PAR1 or not")
    with pytest.raises(InputError, match="not a Parquet file"):
        calibration_lines(str(path))


def test_without_pyarrow_parquet_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    manifest = tmp_path / "chat.yaml"
    manifest.write_text(yaml.safe_dump(cascade_manifest()))
    assert main(["plan", str(manifest), "--calibration", "set.parquet"]) == 2
    assert "set.parquet: Parquet needs the package pyarrow: pip install pyarrow" in capsys.readouterr().err
