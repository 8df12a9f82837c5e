"""Prompts and the record of a calibration run: what is read, kept, done again, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.errors import InputError
from cascadia_cli.calibrating.prompts import Prompt, parse_prompts
from cascadia_cli.calibrating.record import JudgedRow, Record
from cascadia_solver.calibration import CalibrationAnswer, parse_calibration

STAGES = ["small", "large"]


def prompts(*lines: dict[str, Any] | str, need: bool = False) -> list[Prompt]:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return parse_prompts(text, need_references=need)


def numbered(count: int) -> list[Prompt]:
    return prompts(*({"id": f"q{n}", "prompt": f"Question {n}?"} for n in range(count)))


def row(prompt: Prompt, *, stages: list[str] = STAGES, judge: str = "Reference", quality: float = 1.0) -> JudgedRow:
    answers = {
        stage: CalibrationAnswer({"logprob-mean": 0.5 + 0.001 * len(prompt.digest), "logprob-min": 0.1}, quality, 7)
        for stage in stages
    }
    return JudgedRow(id=prompt.id, input_tokens=5, answers=answers, judge=judge, prompt=prompt.digest)


def test_prompts_are_read() -> None:
    first, second = prompts(
        {"id": "1", "prompt": "Why?", "reference": [18, "eighteen"], "body": {"temperature": 0.7}},
        "",
        {"id": "2", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
    )
    assert first.body == {"temperature": 0.7, "messages": [{"role": "user", "content": "Why?"}]}
    assert (first.references, first.question) == (("18", "eighteen"), "Why?")
    assert (second.references, second.question) == ((), "system: Be brief.\n\nuser: Why?")


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"prompt": "x"}, ()),
        ({"prompt": "x", "body": {"tools": [{"type": "function"}]}}, ("tools",)),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}],
                "body": {"response_format": {"type": "json_schema"}},
            },
            ("images", "json-schema"),
        ),
    ],
)
def test_what_a_prompt_needs_beyond_text_is_seen_as_routers_see_it(
    fields: dict[str, Any], needs: tuple[str, ...]
) -> None:
    (one,) = prompts({"id": "1"} | fields)
    assert one.needs == needs


def test_a_digest_is_of_all_but_the_id() -> None:
    base = {"id": "1", "prompt": "Why?", "reference": "so"}
    (same,) = prompts(base | {"id": "other"})
    (one,) = prompts(base)
    assert same.digest == one.digest
    for change in ({"prompt": "How?"}, {"reference": "no"}, {"body": {"temperature": 1}}):
        (other,) = prompts(base | change)
        assert other.digest != one.digest


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: Input data was truncated"),
        ({"prompt": "x"}, "line 2: Object missing required field `id`"),
        ({"id": "", "prompt": "x"}, "line 2: id is empty"),
        ({"id": "0", "prompt": "x"}, "line 2: the id '0' stands on an earlier line too"),
        ({"id": "1"}, "line 2: give exactly one of prompt and messages"),
        ({"id": "1", "prompt": "x", "messages": []}, "line 2: give exactly one of prompt and messages"),
        ({"id": "1", "messages": []}, "line 2: messages is empty"),
        ({"id": "1", "prompt": "x", "body": {"n": 2}}, "line 2: body.n cannot be given: one answer is scored"),
        ({"id": "1", "prompt": "x", "body": {"model": "m"}}, "line 2: body.model cannot be given"),
        ({"id": "1", "prompt": "x", "reference": 1, "body": {"max_tokens": "many"}}, "line 2: Expected `int"),
        ({"id": "1", "prompt": "x", "referense": "18"}, "line 2: Object contains unknown field `referense`"),
        ({"id": "1", "prompt": "x", "reference": " "}, "line 2: reference is empty"),
        ('{"id": "1", "body": {"x": ' + "[" * 5000 + "]" * 5000 + "}}", "line 2: it is nested too deeply"),
        ({"id": "1", "prompt": "x"}, "line 2: no reference, which --judge Reference compares answers with"),
    ],
)
def test_a_wrong_prompt_is_named(line: dict[str, Any] | str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        prompts({"id": "0", "prompt": "x", "reference": "1"}, line, need=True)
    assert str(caught.value).startswith(said)


def test_many_wrong_prompts_are_named_in_part_and_none_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        prompts(*["{"] * 30)
    assert len(caught.value.problems) == 11
    assert str(caught.value.problems[-1]) == "20 more lines are wrong"
    with pytest.raises(InputError, match="no prompts: write one JSON object a line"):
        prompts("")


def test_a_record_is_a_calibration_set_in_the_prompts_order(tmp_path: Path) -> None:
    every, path = numbered(60), tmp_path / "set.jsonl"
    with Record(str(path), STAGES) as record:
        assert record.open(every, "Reference") == every
        for place, each in enumerate(reversed(every)):
            record.add(row(each, quality=place % 2))
            assert path.read_bytes().count(b"\n") == place + 1
        record.finish(every)
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["id"] for each in written] == [each.id for each in every]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="every score of model 'small'"):  # what is wrong with it is its constant score
        parse_calibration(path.read_text().splitlines(), models=STAGES, scorer="logprob-mean")


def test_what_is_whole_and_current_is_kept_and_the_rest_done_again(tmp_path: Path) -> None:
    every, path = numbered(5), tmp_path / "set.jsonl"
    (changed,) = prompts({"id": "q1", "prompt": "Another question?"})
    with Record(str(path), STAGES) as record:
        record.open(every, "Reference")
        record.add(row(every[0]))
        record.add(row(every[1]))
        record.add(row(every[2], stages=["small"]))
        record.add(row(every[3]))
        record.add(row(prompts({"id": "of another file", "prompt": "x"})[0]))
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0][:40])
    before = path.read_bytes().splitlines()
    with Record(str(path), STAGES) as record:
        left = record.open([every[0], changed, *every[2:]], "Reference")
        assert [each.id for each in left] == ["q1", "q2", "q4"]
        assert record.redone == 3
        assert list(record.rows) == ["q0", "q3", "of another file"]
    assert path.read_bytes().splitlines() == [before[0], before[3], before[4]]
    # What is dropped was asked and judged once, maybe for a manifest that is wanted again.
    kept = tmp_path / "set.jsonl.before"
    assert (record.before, kept.read_bytes().splitlines()) == (str(kept), before)
    with Record(str(path), [*STAGES, "another"]) as record:
        assert len(record.open(every, "Reference")) == 5
    assert record.before == f"{kept}2"
    assert kept.read_bytes().splitlines() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not JSON\n", "line 1 was not written by this command"),
        (b'{"kind": "Manifest in one line"}', "was not written by this command: name another -o"),
        (b"[" * 5000 + b"]" * 5000 + b"\n", "line 1 was not written by this command"),
        (b'{"id": "a", "inputTokens": 1, "answers": {}}\n', "line 1 was not written by this command"),
        (
            b'\n{"id":"a","inputTokens":1,"answers":{},"judge":"Endpoint/x","prompt":"0"}\n',
            "line 2 was judged by Endpoint",
        ),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with Record(str(path), STAGES) as record, pytest.raises(InputError, match=said):
        record.open(numbered(2), "Reference")
    assert path.read_bytes() == content


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = str(tmp_path / "set.jsonl")
    every = numbered(2)
    with Record(path, STAGES) as first, Record(path, STAGES) as second:
        first.open(every, "Reference")
        with pytest.raises(InputError, match="another run is writing it"):
            second.open(every, "Reference")
        first.add(row(every[1]))
        first.add(row(every[0]))
        first.finish(every)  # replaces the file: the lock goes with it
        with pytest.raises(InputError, match="another run is writing it"):
            second.open(every, "Reference")


def test_rows_of_other_prompts_that_lack_a_score_are_kept_and_not_counted(tmp_path: Path) -> None:
    """As after the manifest's scorer and the prompts have changed."""
    (earlier,), every, path = prompts({"id": "earlier", "prompt": "x"}), numbered(2), str(tmp_path / "set.jsonl")
    with Record(path, STAGES) as record:
        record.open([earlier], "Reference")
        record.add(row(earlier))
    with Record(path, STAGES, {"logprob-mean", "judge"}) as record:
        assert record.open(every, "Reference") == every
        assert (list(record.rows), record.complete) == (["earlier"], [])
