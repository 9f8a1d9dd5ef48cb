"""Who finds a wrong sentence: texts against their leaflets, metrics by hand, what is read."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.clinic_server import Server

from promedical_audit import arithmetic
from promedical_studies import fact_checking as checking
from promedical_studies import statements
from promedical_studies.statements import KINDS, PLAN, Text
from promedical_utils.clinic import grammar
from promedical_utils.core import profiles
from promedical_utils.core.profiles import Role
from promedical_utils.core.workspace import KitError
from promedical_utils.data.endpoints import Answers, Endpoint
from promedical_utils.data.sources import schemas

DATA = os.environ.get(schemas.VARIABLE, "")
SPLITS = ("train", "calibration", "bench", "external")


@pytest.fixture(scope="module", params=[3, 7])
def world(request):
    return {
        split: (
            statements.handbook(request.param, split),
            statements.written(request.param, split, each=4),
        )
        for split in SPLITS
    }


# --- texts


def test_a_text_has_exactly_the_wrong_sentence_that_it_should(world):
    for book, texts in world.values():
        for text in texts:
            patient = book[text.condition]
            wrong = [n for n, s in enumerate(text.sentences) if not statements.right(patient, s)]
            assert wrong == ([] if text.wrong is None else [text.wrong]), text
            assert all(grammar.read_sentence(s) for s in text.sentences)
            if text.wrong is not None:
                assert text.correction != text.sentences[text.wrong]
                assert statements.right(patient, text.correction)
                slots = [
                    statements.slot_of(s) for s in (text.correction, text.sentences[text.wrong])
                ]
                assert slots[0] == slots[1] in KINDS[text.kind]


def test_half_of_the_texts_are_wrong_and_kinds_take_turns(world):
    for book, texts in world.values():
        assert len(texts) == 4 * len(book)
        wrong = [text.kind for text in texts if text.wrong is not None]
        assert 2 * len(wrong) == len(texts) and set(wrong) == set(KINDS)
        counts = pd.Series(wrong).value_counts()
        assert (
            counts.max() - counts.min() <= len(book) // 10 + 1
        )  # skipped where no leaflet has one
        assert {text.kind for text in texts if text.wrong is None} == {""}
    books = [set(book) for book, _ in world.values()]
    assert len(set().union(*books)) == sum(map(len, books))  # no condition in two splits


def test_equal_seeds_give_equal_texts_and_others_differ():
    first = statements.written(5, "bench", each=2)
    assert first == statements.written(5, "bench", each=2)
    assert first != statements.written(6, "bench", each=2)
    assert len({text.sentences for text in first}) == len(first)


def test_a_leaflet_without_a_place_for_the_error_is_said(monkeypatch):
    with pytest.raises(KitError, match=r"no place for an error of \['household'\]"):
        statements.written(7, "train", each=2, kinds=("household",))
    only = statements.written(7, "external", each=2, kinds=("number",))
    assert {text.kind for text in only} == {"", "number"}


def test_truth_by_hand():
    book = statements.handbook(7, "train")
    patient = next(iter(book.values()))
    facts = patient.facts
    limit, review = facts["limit"], int(facts["review"])
    assert statements.right(patient, grammar.say("dose", "train", 0, limit))
    assert not statements.right(patient, grammar.say("dose", "train", 0, facts["limit_other"]))
    assert statements.right(patient, f"Please come back to see us within {review - 1} days.")
    assert not statements.right(patient, f"Please come back to see us within {review + 1} days.")
    named = (facts["first"], facts["avoid"])
    assert statements.right(patient, grammar.say("choose", "train", 1, *named))
    assert not statements.right(patient, grammar.say("choose", "train", 1, *named[::-1]))
    assert not statements.right(patient, grammar.say("only", "train", 1, facts["other"]))
    assert statements.right(patient, grammar.say("reject", "train", 0, facts["avoid"]))
    assert not statements.right(patient, grammar.say("add", "train", 0, facts["avoid"]))
    assert not statements.right(patient, "Nothing of the grammar.")


# --- what is counted


def text(name, sentences, wrong=None, kind=""):
    return Text(name, f"condition {name}", tuple("abcdefgh"[:sentences]), wrong, kind)


SIX = [
    text("1", 3, 2, "number"),
    text("2", 3, 0, "number"),
    text("3", 4, 1, "time"),
    text("4", 2),
    text("5", 2),
    text("6", 5),
]


def values(calls, strict=False, part="all", texts=SIX):
    sums = checking.counted(texts, {"own": calls}, strict)
    metrics = [*checking.METRICS, "unanswered"]
    columns = [sums.columns({"metric": m, "slice": part})[0] for m in metrics]
    return dict(zip(metrics, sums.each(columns), strict=True))


def calls(*rows):
    return pd.DataFrame(rows, columns=["flagged", "place"])


def test_metrics_by_hand():
    # two of three errors caught, one in its place; one false alarm among three correct texts
    own = calls((1, 2), (1, 1), (0, 1), (1, 0), (0, 1), (np.nan, -1))
    found = values(own)
    assert found["vc_precision"] == pytest.approx(2 / 3)
    assert found["vc_recall"] == pytest.approx(2 / 3)
    assert found["vc_f1"] == pytest.approx(2 / 3)
    assert found["el_precision"] == pytest.approx(1 / 2)  # D2: a wrong place is a miss alone
    assert found["el_recall"] == pytest.approx(1 / 3)
    assert found["el_f1"] == pytest.approx(2 / 5)
    assert found["located"] == pytest.approx(1 / 2)
    assert found["over_criticism"] == pytest.approx(1 / 3)
    assert found["unanswered"] == pytest.approx(1 / 6)
    strict = values(own, strict=True)
    assert strict["el_precision"] == pytest.approx(1 / 3)
    assert strict["el_f1"] == pytest.approx(2 / 6)
    assert strict["vc_f1"] == found["vc_f1"]
    assert values(own, part="number")["located"] == pytest.approx(1 / 2)
    assert values(own, part="time")["vc_recall"] == 0
    assert np.isnan(values(own, part="time")["located"])  # nothing was caught


def test_an_answer_that_is_missing_is_not_flagged_even_where_a_place_stands_there():
    lost, none = calls(*[(np.nan, 2)] * 6), calls(*[(0, 2)] * 6)
    assert {**values(lost), "unanswered": 0} == pytest.approx(values(none), nan_ok=True)
    assert values(lost)["unanswered"] == 1


def test_el_never_exceeds_vc_whoever_calls():
    rng = np.random.default_rng(0)
    for _ in range(200):
        own = calls(*zip(rng.integers(0, 2, 6), rng.integers(0, 4, 6), strict=True))
        for strict in (False, True):
            found = values(own, strict)
            assert np.nan_to_num(found["el_f1"]) <= np.nan_to_num(found["vc_f1"])


def test_always_wrong_has_an_f1_of_two_thirds_where_half_is_wrong():
    found = values(checking.always(SIX))
    assert found["vc_f1"] == pytest.approx(2 / 3) and found["over_criticism"] == 1
    assert found["located"] == pytest.approx(1 / 3)  # of three errors one stands last


def test_one_call_for_each_text():
    with pytest.raises(KitError, match="own: 5 calls on 6 texts"):
        values(checking.always(SIX[:5]))


# --- thresholds, votes


def test_a_threshold_by_balanced_accuracy_of_equal_ones_the_largest():
    scores = [np.array(own) for own in ([0.1, 0.9], [0.8], [0.2], [0.7], [0.3, 0.1], [0.0])]
    least = checking.threshold(scores, SIX)  # wrong: 0.9, 0.8, 0.2; correct: 0.7, 0.3, 0.0
    assert least == 0.8
    made = checking.called(scores, least)
    assert made.flagged.tolist() == [1, 1, 0, 0, 0, 0] and made.place.tolist()[0] == 1
    with pytest.raises(KitError, match="correct and wrong texts"):
        checking.threshold(scores[:3], SIX[:3])
    useless = [np.array([1.0 - (t.wrong is not None)]) for t in SIX]
    assert not checking.called(useless, checking.threshold(useless, SIX)).flagged.any()


def test_votes_by_any_majority_and_all():
    looks = [
        calls((1, 2), (0, 0), (np.nan, -1), (1, 1)),
        calls((1, 0), (1, 4), (np.nan, -1), (np.nan, -1)),
        calls((1, 0), (0, 1), (np.nan, -1), (0, 3)),
    ]
    one, two, three = (checking.voted(looks, least) for least in (1, 2, 3))
    assert one.flagged.tolist()[:2] == [1, 1] and one.flagged.tolist()[3] == 1
    assert two.flagged.fillna(-1).tolist() == [1, 0, -1, 0]
    assert three.flagged.fillna(-1).tolist() == [1, 0, -1, 0]
    assert one.place.tolist() == [0, 4, -1, 1]  # only those that flag name a place
    tied = checking.voted([calls((1, 5)), calls((1, 2))], 1)
    assert tied.place.tolist() == [5]  # the first named


# --- evidence and checkers


def test_evidence_is_what_its_name_says():
    book, texts = statements.handbook(7, "bench"), statements.written(7, "bench", each=2)
    assert set(map(len, checking.evidence(texts, book, "none"))) == {0}
    own = checking.evidence(texts, book, "leaflet")
    again = checking.evidence(texts, book, "leaflet", look=1)
    assert own != again and list(map(sorted, own)) == list(map(sorted, again))
    other = checking.evidence(texts, book, "off_topic")
    top = checking.evidence(texts, book, "top_3")
    assert set(map(len, top)) == {3}
    near = 0
    for t, lines, off, found in zip(texts, own, other, top, strict=True):
        assert all(line.startswith(f"{t.condition}: ") for line in lines)
        assert not any(line.startswith(f"{t.condition}: ") for line in off)
        assert len(off) == len(lines) and len(set(off)) == len(off)
        near += sum(line in lines for line in found)
    assert near > 2 * len(texts)  # retrieval finds the condition's own lines, mostly
    with pytest.raises(KitError, match="evidence 'all'"):
        checking.evidence(texts, book, "all")


def test_words_read_what_the_evidence_has():
    # an invented evidence in which the wrong word is never found and every other one is
    texts = [
        Text(str(n), "c", ("one fine thing.", f"w{n % 2} is bad."), n % 2 or None)
        for n in range(40)
    ]
    shown = [["one fine thing. w0 is bad."]] * 40
    groups = checking.claim_groups(texts, shown)
    likely = checking.words(groups[:20], groups[20:30], groups[30:], 0)
    scores = checking.by_text(likely, texts[30:])
    assert [len(own) for own in scores] == [2] * 10
    assert values_of(scores, texts[30:])["located"] == 1


def values_of(scores, texts):
    least = checking.threshold(scores, texts)
    return values(checking.called(scores, least), texts=texts)


def test_claims_are_the_sentences_and_their_truth():
    texts = statements.written(7, "train", each=2)[:20]
    book = statements.handbook(7, "train")
    groups = checking.claim_groups(texts, checking.evidence(texts, book, "leaflet"), PLAN["unseen"])
    for t, group in zip(texts, groups, strict=True):
        kept = [s for s in t.sentences if statements.slot_of(s) not in PLAN["unseen"]]
        assert [a.text for a in group.candidates] == kept
        wrong = {i.rpartition("-")[2] for (i, _), v in group.verdicts.items() if v == "not_met"}
        assert wrong <= {str(t.wrong)}
        assert all(statements.leaflet(book[t.condition])[0] in m["content"] for m in group.messages)


def test_surprisal_is_the_largest_gap_of_a_sentence(tiny_base):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    own = Text("t", "spleen pain", ("Take one.", "Then rest."))
    [scores] = checking.surprisal(model, tokenizer, [own], [["spleen pain: two."]])
    asked = "What should be known of spleen pain?\nspleen pain: two."
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
    )
    first, second = (tokenizer(f"{s} ").input_ids for s in own.sentences)
    with torch.no_grad():
        likely = model(torch.tensor([prompt + first + second])).logits[0].log_softmax(-1)
    for sentence, start, score in ((first, 0, scores[0]), (second, len(first), scores[1])):
        gaps = [
            float(likely[len(prompt) + start + n - 1].max())
            - float(likely[len(prompt) + start + n - 1][token])
            for n, token in enumerate(sentence)
        ]
        assert score == pytest.approx(max(gaps), abs=1e-4)
    with pytest.raises(KitError, match="text t: over 1024 tokens"):
        checking.surprisal(model, tokenizer, [own], [["word " * 2000]])


class Checker:
    """A model behind an endpoint: it names sentence 2 of texts that have the word bad in it."""

    def __init__(self, **replies):
        self.replies = replies

    def reply(self, messages):
        asked = messages[-1]["content"]
        assert messages[0]["content"].startswith("You check a medical text")
        name = next((n for n in self.replies if n in asked), "")
        wrong = "2. b" in asked and "bad" in asked
        plain = {"reason": "r", "verdict": "wrong" if wrong else "correct", "sentence": 2 * wrong}
        return json.dumps(self.replies.get(name, plain))


def role(**settings):
    return Role(model="m", retries=12, timeout=5.0, concurrency=2, **settings)


BAD = [
    Text("1", "fine", ("a.", "b bad."), 1),
    Text("2", "fine", ("a.", "b.")),
    Text("3", "early", ("a.", "b."), 0),
    Text("4", "beyond", ("a.", "b."), 0),
    Text("5", "contradiction", ("a.", "b.")),
    Text("6", "nowhere", ("a.", "b.")),
]
REPLIES = {
    "early": {"reason": "r", "verdict": "wrong", "sentence": 1},
    "beyond": {"reason": "r", "verdict": "wrong", "sentence": 99},
    "contradiction": {"reason": "r", "verdict": "correct", "sentence": 2},
    "nowhere": {"reason": "r", "verdict": "wrong", "sentence": 0},
}


@pytest.mark.parametrize("faults", [0.0, 0.3])
@pytest.mark.parametrize("prompt", PLAN["prompts"])
def test_a_model_behind_an_endpoint_with_faults(tmp_path, faults, prompt):
    shown = [[t.condition] for t in BAD]
    with Server(Checker(**REPLIES), faults=faults, slow=0.1) as server:
        answers = Answers(tmp_path / "answers.sqlite")
        of = Endpoint("checker m", role(), server.url, answers)
        made = checking.asked(of, prompt, BAD, shown)
        assert made.flagged.fillna(-1).tolist() == [1, 0, 1, -1, -1, -1]
        assert made.place.tolist()[:3] == [1, -1, 0]
        before = server.requests
        again = checking.asked(
            Endpoint("checker m", role(), server.url, answers), prompt, BAD, shown
        )
        assert server.requests == before  # stored answers are read
    pd.testing.assert_frame_equal(again, made)
    assert values(made, texts=BAD)["unanswered"] == pytest.approx(3 / 6)


# --- table and claims


def test_reported_values_and_the_runs_stand_in_columns_of_their_own():
    sums = checking.counted(SIX, {"always": checking.always(SIX)})
    frame = checking.build_table(sums.table(50, 0), {"always": "always wrong"})
    last = frame.iloc[-1]
    assert (last.system, last.status) == ("always wrong", "this run")
    assert last.run_vc_f1 == 66.67 and np.isnan(last.reported_vc_f1)
    reported = frame[frame.status == "not run"].set_index("system")
    assert reported.run_vc_f1.isna().all() and set(reported.mark) == {"n", "D"}
    assert len(reported) == 15
    row = reported.loc["DeepSeek-R1, zero-shot"]
    assert row.reported_vc_f1 == 68.47 and row.reported_over_criticism == 74.82
    assert reported.loc["DeepSeek-R1 + MAD"].reported_over_criticism == 84.48
    assert reported.loc["calls every text wrong (arithmetic)"].reported_over_criticism == 100


def test_claims_are_decided_by_the_kit_and_none_is_arithmetic(tmp_path):
    texts = [text(str(n), 3, 1 if n % 2 else None, "time" if n % 2 else "") for n in range(40)]
    best = calls(*[(n % 2, 1) for n in range(40)])
    over = calls(*[(1, 1) for _ in range(40)])
    names = dict.fromkeys(("surprisal", "surprisal_mean", "surprisal_top_3", "claims"), best)
    names |= dict.fromkeys(("panel_any", "surprisal_any", "surprisal_none"), over)
    sums = checking.counted(texts, names | {"always": checking.always(texts)})
    profile = profiles.load("cpu", bootstrap=100)
    ledger = {c["id"]: c for c in checking.save_claims(profile, sums, tmp_path)}
    assert ledger["panel_criticises"]["verdict"] == "same direction"
    assert ledger["looks_criticise"]["verdict"] == "same direction"
    assert ledger["mean_criticises"]["verdict"] in ("not seen", "cannot be told")
    assert ledger["claims_rm"]["verdict"] == "same direction"
    assert ledger["humans"]["verdict"] == "not testable"
    assert "every correct text" not in (tmp_path / "claims.md").read_text()
    for claim in PLAN["claims"]:
        for check in claim.get("checks", ()):
            sides = {check["metric"], check.get("metric_b", check["metric"])}
            assert sides != {"vc_f1", "el_f1"}, "EL F1 <= VC F1 is arithmetic"
    smoke = checking.save_claims(profiles.load("smoke"), sums, tmp_path / "smoke")
    assert {c["verdict"] for c in smoke} == {"not testable"}


# --- MedFact's numbers


def test_what_the_audit_says_of_the_reported_numbers():
    recall = arithmetic.grim("91.01", 1058)
    assert recall.fails and recall.near == ("90.93", "91.02")
    assert not arithmetic.grim("95.65", 1058).fails
    assert arithmetic.f1("54.88", "91.01", "68.47").verdict == arithmetic.ADDS_UP
    assert arithmetic.f1("53.10", "95.65", "68.29").verdict == arithmetic.ADDS_UP
    assert arithmetic.grim("89.41", 1058).count == "946"
    assert arithmetic.grim("52.65", 1058).count == "557"
    counted = {"caught": 1012, "false": 894, "located": 840}  # the one row that D2 fits
    assert round(2 * 1012 / (1012 + 894 + 1058), 4) == 0.6829
    assert round(2 * 840 / (840 + 894 + 1058), 4) == 0.6017
    assert round(counted["located"] / counted["caught"], 2) == 0.83


# --- texts of people


HEAD = (
    "Text ID,Text,Sentences,Error Flag,Error Type,Error Sentence ID,Error Sentence,"
    "Corrected Sentence,Corrected Text\n"
)
GOOD = 'a,"One. Two.","0 One.\n1 Two\nlines.",1,x,1,Two lines.,Two.,One. Two.\n'


def sheet(folder, *rows):
    (folder / "own.csv").write_text(HEAD + "".join(rows))
    return folder / "own.csv"


def test_a_sheet_of_medec(tmp_path):
    right, blank = 'b,Three.,"0 Three.",0,NA,-1,NA,NA,NA\n', "c,,,,,,,,\n"
    other = 'd,Four.,"0 Four.",1,x,0,Something else.,NA,NA\n'
    texts, left_out = statements.medec(sheet(tmp_path, GOOD, right, blank, other))
    assert [(t.id, t.sentences, t.wrong) for t in texts] == [
        ("a", ("One.", "Two lines."), 1),
        ("b", ("Three.",), None),
        ("d", ("Four.",), 0),
    ]
    assert left_out == {
        "blank rows": 1,
        "lines joined to the sentence that they break": 1,
        "errors that are not the numbered sentence": 1,
    }


@pytest.mark.parametrize("place", ["-1", "NA", "7", ""])
def test_an_error_that_stands_nowhere_is_named(tmp_path, place):
    row = f'a,One.,"0 One.",1,x,{place},One.,NA,NA\n'
    with pytest.raises(KitError, match=r"own.csv, text a, field Error Sentence ID"):
        statements.medec(sheet(tmp_path, row))


def test_a_text_that_is_correct_and_wrong_is_named(tmp_path):
    twin = 'b,"One. Two.","0 One.\n1 Two lines.",0,NA,-1,NA,NA,NA\n'
    with pytest.raises(KitError, match="text b stands there as correct and as wrong"):
        statements.medec(sheet(tmp_path, GOOD, twin))


FIELDS = {"id": "no", "text": "passage", "span": "error", "kind": "type"}


def lines(folder, *rows):
    path = folder / "own.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def test_a_file_of_a_user_by_the_names_of_its_fields(tmp_path):
    rows = [
        {"no": 7, "passage": "一天吃３片。饭后服用！多喝水；", "error": "吃3片", "type": "number"},
        {"no": 8, "passage": "First. Then two\nlines.", "error": None},
        {"passage": "Keep 2.5 ml. Rest well.", "error": "Rest well, a lot"},
    ]
    found = statements.mapped(lines(tmp_path, *rows), FIELDS)
    assert found[0].sentences == ("一天吃3片。", "饭后服用!", "多喝水;")
    assert (found[0].wrong, found[0].kind, found[0].id) == (0, "number", "7")
    assert found[1].sentences == ("First.", "Then two", "lines.") and found[1].wrong is None
    assert found[2].sentences == ("Keep 2.5 ml.", "Rest well.") and found[2].id == "3"


@pytest.mark.parametrize(
    "row, field",
    [
        ({"passage": "One. Two.", "error": "quite another thing"}, "error"),
        ({"passage": "", "error": "One"}, "error"),
    ],
)
def test_a_span_that_is_not_in_the_text_is_named(tmp_path, row, field):
    with pytest.raises(KitError, match=f"own.jsonl, row 1, field {field}"):
        statements.mapped(lines(tmp_path, row), FIELDS)


@pytest.mark.parametrize("row", [{"passage": "One."}, {"error": "One"}])
def test_a_field_that_is_not_there_is_no_empty_one(tmp_path, row):
    with pytest.raises(KitError, match=r"own.jsonl, row 1: no field for \['(text|span)'\]"):
        statements.mapped(lines(tmp_path, row), FIELDS)


@pytest.mark.parametrize(
    "name, anchors",
    [
        ("TestSet", {"n": 597, "wrong": 311, "vc": 0.6850, "el": 0.5580, "strict": 0.5088}),
        ("ValidationSet", {"n": 574, "wrong": 319, "vc": 0.7144, "el": 0.5110, "strict": 0.4412}),
    ],
)
def test_the_shortcut_of_place_on_medec(name, anchors):
    path = Path(DATA or "no folder") / f"medec_ms/MEDEC-MS-{name}.csv"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {schemas.VARIABLE}: its anchors are NOT checked")
    texts, _ = statements.medec(path)
    found, strict = (values(checking.always(texts), s, texts=texts) for s in (False, True))
    assert len(texts) == anchors["n"]
    assert sum(t.wrong is not None for t in texts) == anchors["wrong"]
    assert round(found["vc_f1"], 4) == anchors["vc"] and round(found["el_f1"], 4) == anchors["el"]
    assert round(strict["el_f1"], 4) == anchors["strict"]
