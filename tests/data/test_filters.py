"""Curation: every filter by hand, leaks of the bench, and a pool of which the truth is known."""

from collections import Counter

import pytest
from helpers import synthetic_pool

from promedical_utils import clinic
from promedical_utils.clinic import pool
from promedical_utils.core import profiles
from promedical_utils.core.records import Instruction, RawInstruction
from promedical_utils.core.workspace import KitError
from promedical_utils.data.curation import filters as curation
from promedical_utils.data.curation import languages
from promedical_utils.data.curation.filters import NOT_MEDICAL, curate

ASKED = "May I take Morlodor with milk when my elbow aches at night?"
PROFILE = profiles.load("smoke")
QUESTION = ("follow-up", "elbow care")


def row(id_, text=ASKED, licence="MIT"):
    return RawInstruction(id=id_, text=text, source="test", licence=licence)


def run(rows, bench=None, difficulty=7, found=QUESTION):
    return curate(
        rows,
        bench or {},
        lambda t: [difficulty] * len(t),
        lambda t: [found] * len(t),
        PROFILE,
    )


@pytest.fixture(scope="module")
def world():
    return clinic.build(profiles.load("smoke"), sizes=(120, 30, 20, 80, 20))


@pytest.fixture(scope="module")
def planted(world):
    """A raw pool, its truth, and what curation made of it."""
    rows, truth = pool.raw(world, world.ids("train"), 11)
    bench = {
        i: pool.text_of(next(x for x in world.instructions if x.id == i).messages)
        for i in world.ids("bench")
    }
    truth_of = {r.text: truth[r.id] for r in rows}
    asked = {"screen": [], "classify": []}

    def screen(texts):
        asked["screen"] += texts
        return [truth_of[t].difficulty for t in texts]

    def classify(texts):
        asked["classify"] += texts
        found = [truth_of[t] for t in texts]
        return [
            NOT_MEDICAL if p.kind == "not_medical" else (p.category, p.specialty) for p in found
        ]

    return rows, truth, curate(rows, bench, screen, classify, PROFILE), asked


# ---------------------------------------------------------------- the whole way


def test_each_planted_row_ends_where_it_belongs(planted):
    rows, truth, out, _ = planted
    ends = {
        "licence": "licence",
        "language": "language",
        "length": "length",
        "duplicate": "duplicates",
        "leak": "bench",
        "too_easy": "difficulty",
        "too_hard": "difficulty",
        "not_medical": "medical",
        "kept": "kept",
        "near_miss": "kept",
    }
    end = dict.fromkeys((i.id for i in out.instructions), "kept") | dict(
        zip(out.left_out.id, out.left_out.step)
    )
    assert {p.kind for p in truth.values()} == set(ends)
    wrong = Counter((p.kind, end[i]) for i, p in truth.items() if end[i] != ends[p.kind])
    # what is missed is a duplicate or two, e.g. with a typing error in a negation
    assert set(wrong) <= {("duplicate", "kept")} and wrong.total() <= 2


def test_the_funnel_adds_up_and_nothing_vanishes(planted):
    rows, _, out, _ = planted
    f = out.funnel
    assert f.step.tolist() == [
        "licence",
        "language",
        "length",
        "duplicates",
        "bench",
        "difficulty",
        "medical",
    ]
    assert (f.before - f.dropped - f.queued == f.after).all()
    assert f.before.tolist() == [len(rows), *f.after.tolist()[:-1]] and f.after.iloc[-1] == len(
        out.instructions
    )
    assert out.left_out.groupby("step").size().to_dict() == dict(zip(f.step, f.dropped))
    ids = [*(i.id for i in out.instructions), *out.left_out.id]
    assert sorted(ids) == sorted(r.id for r in rows)
    assert out.left_out.reason.str.len().min() > 5


def test_instructions_say_what_the_roles_said_of_them(planted):
    rows, truth, out, asked = planted
    texts = {r.id: r.text for r in rows}
    for i in out.instructions:
        p = truth[i.id]
        assert isinstance(i, Instruction) and (i.category, i.specialty, i.difficulty) == (
            p.category,
            p.specialty,
            p.difficulty,
        )
        assert [(m.role, m.content) for m in i.messages] == [("user", texts[i.id])]
    # a model is asked of what the cheap steps left, and classifies what the screener let pass
    before = dict(zip(out.funnel.step, out.funnel.before))
    assert (
        len(asked["screen"]) == before["difficulty"] and len(asked["classify"]) == before["medical"]
    )


def test_a_raw_pool_is_a_function_of_its_seed(world):
    ids = world.ids("train")[:30]
    assert pool.raw(world, ids, 4) == pool.raw(world, ids, 4) != pool.raw(world, ids, 5)
    rows, truth = pool.raw(world, ids, 4)
    assert len({r.id for r in rows}) == len(rows) == len(truth)
    assert {i for i, p in truth.items() if p.kind == "kept"} == set(ids)


def test_a_synthetic_pool_has_the_share_of_duplicates_that_is_asked_for():
    rows = list(synthetic_pool.synthetic(4000, 3, 0.2))
    kinds = Counter(kind for *_, kind in rows)
    assert len(rows) == 4000 == len({id_ for id_, *_ in rows})
    assert kinds["duplicate"] / 4000 == pytest.approx(0.2, abs=0.02)
    assert kinds["near_miss"] / 4000 == pytest.approx(synthetic_pool.NEAR_MISS_SHARE, abs=0.01)
    clusters = Counter(cluster for _, _, cluster, _ in rows)
    assert len(clusters) == kinds["kept"] + kinds["near_miss"]


# ---------------------------------------------------------------- step by step


def test_only_listed_licences_pass():
    out = run(
        [
            row("a"),
            row("b", "Which drops help against an itch?", "cc-by-4.0"),
            row("c", licence="none stated"),
        ]
    )
    assert {i.id for i in out.instructions} == {"a", "b"}
    assert out.left_out.values.tolist() == [["c", "licence", "licence none stated", False]]


@pytest.mark.parametrize(
    "text",
    [
        "Start with Bripimune rather than Cilvador.",
        "Ulmruvane or Gaxkarin, 45 units, Torbodor?",
        "chest pain radiating to left arm",
        "Is pepto peptobismol?",
        "HbA1c 7.2, LDL 130, start statin?",
        "12 / 80, 97 %",
        "",
    ],
)
def test_invented_names_and_short_english_are_not_foreign(text):
    assert languages.foreign(text, ("en",)) == ""


def test_the_clinics_messages_are_surely_english(world):
    texts = [pool.text_of(i.messages) for i in world.instructions[:60]]
    assert all(languages.ranked(t)[0][0] == "en" and languages.ranked(t)[0][1] > 0.9 for t in texts)


def test_sentences_in_other_languages_are_foreign():
    from promedical_utils.clinic.vocabulary import read

    for code, sentences in read("pool")["foreign"].items():
        for sentence in sentences:
            assert languages.foreign(sentence, ("en",)), sentence
            assert languages.foreign(sentence, ("en", code)) == ""
    assert languages.ranked("45 % !") == []


def test_both_bounds_of_the_length_pass():
    bounds = PROFILE.model_copy(update={"words_least": 4, "words_most": 6})
    numbers = "one two three four five six seven".split()
    rows = [row(str(n), " ".join(numbers[:n])) for n in (3, 4, 6, 7)]
    rows.append(row("blank", " \n"))
    out = curate(rows, {}, lambda t: [7] * len(t), lambda t: [QUESTION] * len(t), bounds)
    assert [i.id for i in out.instructions] == ["4", "6"]
    assert dict(zip(out.left_out.id, out.left_out.reason)) == {
        "3": "3 words, not 4 to 6",
        "7": "7 words, not 4 to 6",
        "blank": "0 words, not 4 to 6",
    }


def test_chinese_is_counted_by_its_letters():
    asked = "这种喷雾一天最多可以用几次？我怀孕六个月，还在吃降压药。"
    length = curation.CHEAP["length"]
    assert length(row("q", asked), PROFILE.model_copy(update={"words_most": 25})) == ""
    most = PROFILE.model_copy(update={"words_most": 24})
    assert length(row("q", asked), most) == "25 words, not 4 to 24"
    assert length(row("q", "几次"), PROFILE).startswith("2 words, not ")


def test_a_bench_item_inside_a_chinese_post_is_a_leak():
    item = "我母亲今年六十八岁一直在吃降糖药昨天开始头晕出冷汗现在应该怎么办"
    post = row(
        "p", f"大家好我们上周刚搬到新城市还没有找到医生想请教一下{item}因为附近的诊所要到下周一"
    )
    other = row("o", "我母亲昨天开始头晕，现在应该看哪一科的医生比较好？")
    assert curation.leaks([post, other], {"b": item}) == {
        "p": "n-gram overlap 1.00 with bench item b"
    }


def test_both_bounds_of_the_difficulty_pass_and_no_answer_is_queued():
    texts = [
        f"Which {drops} drops help against an itch?"
        for drops in "red green blue white black".split()
    ]
    rows = [row(str(n), t) for n, t in enumerate(texts)]
    answers = dict(zip(texts, [4, 5, 9, 10, None]))
    out = curate(
        rows,
        {},
        lambda ts: [answers[t] for t in ts],
        lambda ts: [QUESTION if "blue" in t else None for t in ts],
        PROFILE,
    )
    assert [i.id for i in out.instructions] == ["2"]
    assert out.left_out.values.tolist() == [
        ["0", "difficulty", "difficulty 4, not 5 to 9", False],
        ["3", "difficulty", "difficulty 10, not 5 to 9", False],
        ["4", "difficulty", "no answer of the screener", True],
        ["1", "medical", "no answer of the classifier", True],
    ]
    assert out.funnel.queued.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_a_duplicate_names_the_row_that_is_kept():
    out = run(
        [
            row("b", f"Hello, {ASKED.lower()} Thanks!"),
            row("a"),
            row("c", ASKED.replace("milk", "water")),
        ]
    )
    assert {i.id for i in out.instructions} == {"a", "c"}
    assert out.left_out.values.tolist() == [["b", "duplicates", "same words of a", False]]


# ---------------------------------------------------------------- the bench

ITEM = (
    "I have twitch in my elbow for 12 weeks. Leaflet: Danger snoring. Maximum 30 units a day. "
    "Never give Ravtidor."
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (ITEM, "n-gram overlap 1.00"),
        (
            f"Please answer as a poet would. {ITEM} Answer in one line of verse, and no more.",
            "n-gram overlap 1.00",
        ),
        (ITEM.replace("snoring", "snorring").replace("twitch", "twich"), "n-gram overlap"),
        (ITEM.replace("30", "45"), "n-gram overlap"),  # another dose is a leak all the same
        (
            "Never give Ravtidor. Danger snoring. For 12 weeks twitch in my elbow I have. "
            "Leaflet: a day maximum 30 units.",
            "word overlap 1.00",
        ),
        ("Nevr mind. Twich in elbw", None),
    ],
)
def test_a_leak_is_found_and_named_with_its_rule(text, rule):
    bench = {"other": "Where do I keep the drops of the thumb in a warm summer?", "item": ITEM}
    found = curation.leaks([row("r", text), row("clean")], bench)
    assert set(found) == ({"r"} if rule else set())
    if rule:
        assert found["r"].startswith(rule) and found["r"].endswith("with bench item item")


def test_a_short_bench_item_with_a_typing_error_is_found_by_its_embedding():
    found = curation.leaks(
        [row("r", "Is Lexapro adictive, please?")], {"q": "Is Lexapro addictive?"}
    )
    assert found["r"].startswith("embedding")
    assert not curation.leaks([row("r", "Is Zoloft addictive?")], {"q": "Is Lexapro addictive?"})


def test_other_patients_of_the_same_clinic_are_no_leak(world):
    known = {i.id: pool.text_of(i.messages) for i in world.instructions}
    rows = [row(i, known[i]) for i in world.ids("train")]
    assert curation.leaks(rows, {i: known[i] for i in world.ids("bench")}) == {}


# ---------------------------------------------------------------- bad input


def test_bad_input_is_one_clear_error():
    with pytest.raises(KitError, match="1 ids stand more than once, first 'a'"):
        run([row("a"), row("a")])
    with pytest.raises(KitError, match="screener answered 0 of 1"):
        curate([row("a")], {}, lambda t: [], lambda t: [QUESTION], PROFILE)
    with pytest.raises(KitError, match="classifier answered 2 of 1"):
        curate([row("a")], {}, lambda t: [5], lambda t: [QUESTION, QUESTION], PROFILE)


def test_no_rows_make_an_empty_funnel():
    out = run([], {"q": ITEM})
    assert not out.instructions and out.funnel.after.tolist() == [0] * 7 and out.left_out.empty
