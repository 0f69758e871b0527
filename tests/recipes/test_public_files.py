"""Published layouts that the example scripts read, and how the scripts end on files of another form."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import agents
import counselling
import public_files
import pytest
import regulations

from penchant.errors import DataError

REGULATION = """<?xml version="1.0" encoding="UTF-8"?>
<regulation xmlns="eregs">
  <fdsys><title>TEST</title></fdsys>
  <part partNumber="1777" label="1777"><content><subpart><content>
    <section label="1777-2" sectionNum="2"><subject>§ 1777.2 Definitions.</subject>
      <paragraph label="1777-2-a" marker="(a)"><title type="keyterm">Fee.</title>
        <content><def term="fee">Fee</def> means a <ref target="1777-2-b">price</ref>.</content>
        <paragraph label="1777-2-a-1" marker="(1)"><content>It is paid once.</content></paragraph>
      </paragraph>
    </section>
    <interpretations label="1777-Interp"><title>Supplement I</title>
      <interpSection label="1777-2-Interp"><title>Section 1777.2</title>
        <interpParagraph label="1777-2-Interp-1" target="1777-2"><title>Once.</title>
          <content>Once is once.</content></interpParagraph>
      </interpSection>
    </interpretations>
  </content></subpart></content></part>
  <analysis><analysisSection><title>Left out</title></analysisSection></analysis>
</regulation>
"""
HEALTH = """<?xml version="1.0"?>
<Document id="1" source="S" url="u"><Focus>Gout</Focus>
  <QAPairs>
    <QAPair pid="1"><Question qid="1-1" qtype="symptoms">What are the signs of Gout ?</Question>
      <Answer>A red
        toe.</Answer></QAPair>
    <QAPair pid="2"><Question qid="1-2" qtype="causes">What causes Gout ?</Question><Answer /></QAPair>
  </QAPairs>
</Document>
"""
COUNSEL = """questionID,questionTitle,questionText,topic,answerText,upvotes,views
7,Why?,I ask.,worry,"<p>Because, <b>so</b>.</p>",3,10
7,Why?,I ask.,worry,Perhaps.,0,10
7,Why?,I ask.,worry,Perhaps.,1,10
"""


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_regulations_as_published(tmp_path):
    write(tmp_path / "cfpb" / "1777" / "2017-1.xml", REGULATION)
    paragraphs, definitions = public_files.regulations(tmp_path)
    rule, interpretation = ("§ 1777.2 Definitions.", "rule"), ("Section 1777.2", "interpretation")
    assert [(p["heading"], p["text"], (p["section"], p["kind"])) for p in paragraphs] == [
        ("Fee.", "Fee means a price.", rule),
        ("", "It is paid once.", rule),
        ("Once.", "Once is once.", interpretation),
    ]
    assert {p["reg"] for p in paragraphs} == {"1777"}
    assert definitions == [{"reg": "1777", "term": "fee", "text": "Fee means a price."}]
    write(tmp_path / "cfpb" / "1777" / "2018-1.xml", REGULATION)
    with pytest.raises(DataError, match=r"part 1777 is in 2017-1.xml too"):
        public_files.regulations(tmp_path)


def test_health_questions_as_published(tmp_path):
    write(tmp_path / "medquad" / "1_Some_QA" / "1.xml", HEALTH)
    [row] = public_files.health_questions(tmp_path)
    assert row == {
        "question": "What are the signs of Gout ?", "answer": "A red toe.", "focus": "Gout", "qtype": "symptoms"
    }  # fmt: skip


def test_counsellors_answers_as_published(tmp_path):
    file = write(tmp_path / "counsel_chat" / "answers.csv", COUNSEL)
    question = {"question": "Why?\n\nI ask.", "topic": "7"}
    assert public_files.counsellors_answers(tmp_path) == [
        {"answer": "Because, so .", "votes": 3, **question},
        {"answer": "Perhaps.", "votes": 0, **question},
    ]
    write(file, COUNSEL.replace(",3,", ",many,"))
    with pytest.raises(DataError, match=r"'upvotes' is 'many'; expected a number"):
        public_files.counsellors_answers(tmp_path)


def test_other_parts_need_no_table_of_names(tmp_path):
    """A single part with one definition has no other definition to prefer it to, which is said."""
    write(tmp_path / "cfpb" / "1777.xml", REGULATION)
    write(tmp_path / "medquad" / "1.xml", HEALTH)
    for name in ("openbookqa", "ARC-Easy"):
        write(tmp_path / name / "train.json", json.dumps([{"instruction": "Which?"}]))
    with pytest.raises(DataError, match="nothing in it gives preferences"):
        regulations.make_files(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write(
        tmp_path / "cfpb" / "1778.xml", REGULATION.replace("1777", "1778").replace("Fee", "Loan").replace("fee", "loan")
    )
    regulations.make_files(tmp_path, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "preferences.jsonl").read_text().splitlines()]
    assert [(row["prompt"][-13:-8], row["chosen"], row["rejected"]) for row in rows] == [
        ("1777?", " Fee means a price.", " Loan means a price."),
        ("1778?", " Loan means a price.", " Fee means a price."),
    ]
    tasks = [json.loads(line) for line in (tmp_path / "out" / "tasks.jsonl").read_text().splitlines()]
    assert {row["completion"] for row in tasks} == {" 1777", " 1778", " rule", " interpretation"}


SCRIPTS = {regulations: "cfpb", counselling: "counsel_chat", agents: "glaive_toolcall"}
OTHER_FILES = {
    "cfpb/part.xml": "<regulation",
    "counsel_chat/a.csv": "name,age\nA,3\n",
    "glaive_toolcall/glaive_toolcall_en_demo.json": '[{"text": "x"}]',
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("other", [False, True], ids=["no files", "files of another form"])
def test_a_script_ends_with_one_message(script, other, tmp_path, monkeypatch, capsys):
    if other:
        for name, text in OTHER_FILES.items():
            write(tmp_path / "data" / name, text)
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "data"), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        public_files.run_script(script.make_files, "usage")
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.startswith(str(tmp_path / "data" / SCRIPTS[script]))
    assert "what to do" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    write(tmp_path / "out", "a file")
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as caught:
        public_files.run_script(lambda out: public_files.write_rows(out / "a.jsonl", []), "usage")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'out'}: ")


def test_a_script_without_its_folders_shows_its_usage(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as caught:
        public_files.run_script(regulations.make_files, "usage")
    assert (caught.value.code, capsys.readouterr().err) == (2, "usage\n")
