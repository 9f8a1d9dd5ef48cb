"""Chain of strategy: the seeker's exact truth, the search by hand, the pairs, the measures."""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from promedical_studies import seekers, strategy_measures, strategy_roles, strategy_search
from promedical_studies.seekers import STRATEGIES, Simulated, State, Turn
from promedical_utils.core.profiles import Role
from promedical_utils.core.statistics import cluster_weights
from promedical_utils.core.workspace import KitError
from promedical_utils.data.endpoints import Answers, Endpoint

EARLY = State(0, seekers.TOO_EARLY, 3, 0, -1)
VALIDATE, AFFIRM, PLAN = "Emotional Validation", "Affirmation", "Collaborative Planning"


def simulated(seed=0, **kwargs) -> Simulated:
    return Simulated(("spleen", "ache"), random.Random(seed), **kwargs)


def follow(state: State, first: int, rng: random.Random) -> int:
    """Distress in the end of one choice, and the best ones from then on."""
    while not state.ended:
        odds, after = zip(*seekers.outcomes(state, first))
        [state] = rng.choices(after, odds)
        if not state.ended:
            first = STRATEGIES.index(seekers.best(state)[0])
    return state.distress


# ---------------------------------------------------------------- the world


def test_outcomes_are_distributions_of_possible_states():
    for openness in range(3):
        for cue in seekers.CUES[openness]:
            for last in (-1, 0, 3):
                for strategy in range(8):
                    after = seekers.outcomes(State(openness, cue, 2, 1, last), strategy)
                    assert sum(p for p, _ in after) == pytest.approx(1)
                    assert all(0 <= s.distress <= 4 and s.turn == 2 for _, s in after)
                    assert all(s.cue in seekers.CUES[s.openness] for _, s in after)


@pytest.mark.parametrize(
    "state", [EARLY._replace(turn=4), State(2, 7, 3, 5, 6), State(1, 3, 4, 3, 0)]
)
def test_q_by_recursion_is_q_by_simulation(state):
    rng, games = random.Random(1), 1500
    for strategy in range(8):
        ends = np.array([follow(state, strategy, rng) for _ in range(games)])
        error = max(ends.std(), 0.1) / np.sqrt(games)
        assert abs(-ends.mean() - seekers.action_value(state, strategy)) < 4 * error


def test_the_last_turn_by_hand():
    ready = State(2, STRATEGIES.index(PLAN), 3, 7, -1)
    assert seekers.action_value(ready, STRATEGIES.index(PLAN)) == -1
    assert seekers.action_value(ready, STRATEGIES.index(AFFIRM)) == -2.5
    early = EARLY._replace(turn=7)
    assert seekers.action_value(early, STRATEGIES.index(PLAN)) == -4
    assert seekers.advantage(early, VALIDATE, PLAN) == pytest.approx(1)


def test_who_asks_too_early_says_the_words_of_a_ready_one_and_needs_validation():
    roles = simulated()
    ready = State(2, STRATEGIES.index(PLAN), 3, 0, -1)
    early, late = ({roles.turn(state).text for _ in range(60)} for state in (EARLY, ready))
    assert early == late
    assert seekers.best(EARLY) == [VALIDATE] and seekers.best(ready._replace(turn=6)) == [PLAN]
    assert len(seekers.best(ready)) == 8  # there is time to do it later


def test_a_constant_supporter_does_not_solve_the_world():
    for name, least in ((AFFIRM, 2), (PLAN, 4)):
        ends = [seekers.dialogue(simulated(n), lambda _, name=name: name)[-1] for n in range(20)]
        assert min(end.state.distress for end in ends) >= least


# ---------------------------------------------------------------- the search


class Scripted:
    """Roles that say what a test wants: ratings, scores, and after how many rounds it ends."""

    def __init__(self, ratings=None, scores=None, ends=2, text="yes"):
        self.ratings = ratings or dict.fromkeys(STRATEGIES, 5.0)
        self.scores, self.ends, self.text, self.judged = scores or {}, ends, text, 0

    def rate(self, history):
        return list(self.ratings.items())

    def write(self, history, strategy):
        return f"{self.text} {strategy}".strip() if self.text else ""

    def reply(self, history):
        return Turn("", "well", len(history) >= 2 * self.ends)

    def score(self, history):
        self.judged += 1
        return dict.fromkeys(seekers.DIMENSIONS, self.scores.get(history[-2].strategy, 3))


OPENING = (Turn("", "hello"),)


def test_one_iteration_by_hand():
    ratings = dict.fromkeys(STRATEGIES, 0.0) | {AFFIRM: 5.0}
    roles = Scripted(ratings, {AFFIRM: 4}, ends=9)
    root, _, calls = strategy_search.search(roles, OPENING, most=1)
    [child] = [child for child in root.children if child.history]
    assert child.strategy == AFFIRM and child.prior == pytest.approx(np.e / (np.e + 7))
    assert (calls, roles.judged) == (5, 5)  # its own round and four more
    assert child.value == root.value == 1 and child.visits == root.visits == 1
    assert child.bound == pytest.approx(1 + child.prior / 2)  # Q + c P sqrt(1) / (1 + 1)
    other = root.children[0]
    assert other.bound == pytest.approx(other.prior)  # 0 + P sqrt(1) / (0 + 1)


def test_values_are_means_of_what_came_back():
    root, *_ = strategy_search.search(simulated(), simulated().opening(), most=60)
    for node in strategy_search.nodes(root):
        below = sum(child.visits for child in node.children)
        assert node.visits in (below, below + 1) or node.history[-1].ended
        assert -3 <= node.value <= 1


def test_stops_by_the_authors_rule():
    fond = dict.fromkeys(STRATEGIES, 0.0) | {AFFIRM: 10.0}  # deep paths before broad ones

    def count(rounds, **kwargs):
        return strategy_search.search(Scripted(fond, ends=rounds), OPENING, **kwargs)[1]

    assert count(99) == 200  # nobody ends: the most there are
    assert 100 <= count(4, ends=10**6) < 200  # the least, once one has ended
    assert count(4, ends=5) < 100


def test_without_exploration_it_stops_all_the_same():
    ratings = dict.fromkeys(STRATEGIES, 0.0) | {AFFIRM: 10.0}
    roles = Scripted(ratings, {AFFIRM: 4}, ends=1)
    assert strategy_search.search(roles, OPENING, c=0, most=20)[1] == 40


def test_a_given_dialogue_comes_first():
    beyond = "Offer Hope"
    given = (
        Turn(beyond, "it gets better"),
        Turn("", "does it?"),
        Turn(AFFIRM, "yes"),
        Turn("", "bye", True),
    )
    root, *_ = strategy_search.search(Scripted(ends=9), OPENING, most=1, given=given)
    odds = {child.strategy: child.prior for child in root.children}
    assert odds[beyond] == 0.1 and odds[AFFIRM] == pytest.approx(0.9 / 8)
    first = root.children[-1]
    assert first.strategy == beyond and first.visits == 101 and first.value <= 1


def test_pairs_of_a_tree_by_hand():
    roles = Scripted(scores={VALIDATE: 4, AFFIRM: 4, PLAN: 1}, ends=1)
    roles.scores |= {name: 2 for name in STRATEGIES if name not in roles.scores}
    root, *_ = strategy_search.search(roles, OPENING, least=60, most=60, ends=99)
    ends, pairs = strategy_search.preference_pairs(root)
    assert {end.strategy for end in ends} == {VALIDATE, AFFIRM}
    assert {(p.chosen.strategy, p.rejected.strategy) for p in pairs} == {
        (good, bad)
        for good in (VALIDATE, AFFIRM)
        for bad in STRATEGIES
        if bad not in (VALIDATE, AFFIRM)
    }
    assert len(pairs) == len(set(pairs)) == 12


def test_a_turn_on_a_good_path_is_never_rejected():
    for seed in range(6):
        roles = simulated(seed)
        root, *_ = strategy_search.search(roles, roles.opening())
        ends, pairs = strategy_search.preference_pairs(root)
        good = set()
        for node in ends:
            while node.parent:
                good.add(node.history[:-1])
                node = node.parent
        for pair in pairs:
            assert (*pair.history, pair.chosen) in good
            assert (*pair.history, pair.rejected) not in good
            assert pair.chosen[:2] != pair.rejected[:2]


def test_two_good_paths_of_low_value_do_not_reject_each_other():
    root = strategy_search.Node("", 1.0, history=OPENING)
    root.add(dict.fromkeys((VALIDATE, AFFIRM, PLAN), 1 / 3))
    for child in root.children:  # the first two lead to an end of 0.7, and are worth 0.3 themselves
        child.history = (*OPENING, Turn(child.strategy, "a"), Turn("", "b"))
        child.value, child.visits = 0.3, 3
        child.add({PLAN: 1.0} if child.strategy != PLAN else {})
        for end in child.children:
            end.history = (*child.history, Turn(PLAN, "c"), Turn("", "d", True))
            end.value, end.visits = 0.7, 2
    ends, pairs = strategy_search.preference_pairs(root)
    assert len(ends) == 2
    assert {(pair.chosen.strategy, pair.rejected.strategy) for pair in pairs} == {
        (VALIDATE, PLAN),
        (AFFIRM, PLAN),
    }
    ends[0].visits = 1
    assert len(strategy_search.preference_pairs(root)[0]) == 1  # one look is not enough


def test_no_good_end_is_said_once_no_tree_has_one():
    roles = Scripted(scores=dict.fromkeys(STRATEGIES, 1))
    bad = strategy_search.preference_pairs(strategy_search.search(roles, OPENING)[0])
    assert bad == ([], [])
    with pytest.raises(KitError, match="none of 2 trees has a good end"):
        strategy_search.collect([bad, bad])
    good = strategy_search.preference_pairs(strategy_search.search(Scripted(), OPENING)[0])
    assert good[0] == [] or strategy_search.collect([bad, good]) == good[1]


def test_one_step_has_as_many_calls_and_prefers_the_words():
    roles = simulated(noise=0.0, lenient=0.0)
    roles.score, counted = count_calls(roles.score)
    pairs = strategy_search.one_step(roles, [(roles.turn(EARLY),)], 80)
    assert len(counted) == 80
    assert {pair.chosen.strategy for pair in pairs} == {PLAN}
    seeing = simulated(noise=0.0, lenient=0.0, judge="outcome")
    seen = strategy_search.one_step(seeing, [(seeing.turn(EARLY),)], 800)
    assert {pair.chosen.strategy for pair in seen} == {VALIDATE}


def count_calls(function):
    calls = []
    return lambda history: (calls.append(history), function(history))[1], calls


def test_the_tree_sees_through_the_words_where_one_step_does_not():
    right = {"tree": [], "one step": []}
    for seed in range(12):
        roles = simulated(seed)
        root, _, calls = strategy_search.search(roles, roles.opening())
        pairs = strategy_search.preference_pairs(root)[1]
        asked = list(dict.fromkeys(pair.history for pair in pairs))
        singly = strategy_search.one_step(roles, asked, calls)
        for way, own in (("tree", pairs), ("one step", singly)):
            for history, chosen, rejected in own:
                truth = seekers.advantage(history[-1].state, chosen.strategy, rejected.strategy)
                if history[-1].state.cue == seekers.TOO_EARLY and abs(truth) > 1e-9:
                    right[way].append(truth > 0)
    assert np.mean(right["tree"]) > 0.5 and np.mean(right["one step"]) < 0.2


RATED = dict.fromkeys(STRATEGIES, 5.0)


@pytest.mark.parametrize(
    "ratings",
    [
        [*RATED.items()][1:],
        [*RATED.items(), (AFFIRM, 5.0)],
        [*RATED.items()][1:] + [("Flattery", 5.0)],
        [*RATED.items()][1:] + [(VALIDATE, 11.0)],
        [*RATED.items()][1:] + [(VALIDATE, -1.0)],
        [*RATED.items()][1:] + [(VALIDATE, float("nan"))],
    ],
)
def test_bad_ratings_are_named(ratings):
    with pytest.raises(KitError, match="rating"):
        strategy_search.priors(ratings)


def test_equal_ratings_are_equal_priors():
    assert list(strategy_search.priors(RATED.items()).values()) == pytest.approx([1 / 8] * 8)


@pytest.mark.parametrize(
    "change", [{"Empathy": 5}, {"Strategy": -1}, {"Humanoid": float("nan")}, {"Warmth": 2}]
)
def test_bad_scores_are_named(change):
    scores = dict.fromkeys(seekers.DIMENSIONS, 2)
    assert strategy_search.points(scores | {"Strategy": 4}) == pytest.approx(3.4)
    with pytest.raises(KitError, match="give 0 to 4"):
        strategy_search.points(scores | change)
    with pytest.raises(KitError, match="give 0 to 4"):
        strategy_search.points({"Empathy": 2})


def test_bad_dialogues_are_named():
    with pytest.raises(KitError, match="before its first strategy"):
        strategy_search.search(Scripted(), (Turn("", "bye", True),))
    with pytest.raises(KitError, match="an empty turn"):
        strategy_search.search(Scripted(text=""), OPENING)


# ---------------------------------------------------------------- the measures


def test_measures_against_scikit_learn():
    rng = random.Random(3)
    gold, said = (rng.choices(STRATEGIES[:7], k=200) for _ in range(2))
    found = strategy_measures.measures(said, gold)
    for name, average in (("Q", "macro"), ("QW", "weighted")):
        labels = list(STRATEGIES)
        expected = f1_score(gold, said, labels=labels, average=average, zero_division=0)
        assert found[name][0] == pytest.approx(expected)
    assert found["accuracy"][0] == np.mean([a == b for a, b in zip(gold, said)])


def test_preference_bias_of_two_by_hand():
    # 3 turns of gold b called a, 1 of gold a called b: the odds of preferring a are 3 to 1
    counts = np.array([[[5, 3], [1, 5]]])
    assert strategy_measures.bias(counts)[0] == pytest.approx(np.std([1.5, 0.5]), abs=1e-6)


def test_preference_bias_where_the_formula_has_none():
    everything = [*STRATEGIES]
    perfect = strategy_measures.measures(everything, everything)
    assert np.isnan(perfect["B0"][0]) and perfect["B"][0] == pytest.approx(0)
    constant = strategy_measures.measures([AFFIRM] * 8, everything)
    assert np.isnan(constant["B0"][0]) and constant["B"][0] > 0.5
    assert constant["accuracy"][0] == 1 / 8


def test_weights_count_turns_as_often_as_they_say():
    gold, said = [VALIDATE, AFFIRM, PLAN], [VALIDATE, PLAN, PLAN]
    twice = strategy_measures.measures(said, gold, np.array([[1, 2, 1]]))
    listed = strategy_measures.measures([*said, PLAN], [*gold, AFFIRM])
    for name in ("accuracy", "Q", "QW", "B"):
        assert twice[name][0] == pytest.approx(listed[name][0])


def test_an_unknown_label_is_named():
    with pytest.raises(KitError, match="'Flattery' is no strategy"):
        strategy_measures.measures(["Flattery"], [AFFIRM])


def test_claims_have_the_kits_verdicts():
    weights = cluster_weights(range(40), 200, 0)
    for shift, verdict in ((0.5, "same direction"), (-0.5, "contradicts"), (0.0, "not seen")):
        values = shift + np.tile([0.05, -0.05], 20)
        drawn = weights @ values / weights.sum(axis=1)
        row = strategy_measures.claim("a - b", "accuracy", drawn, 40)
        assert row["verdict"] == verdict and row["difference"] == pytest.approx(shift)
    near = weights @ (0.995 + np.tile([0.05, -0.05], 20)) / weights.sum(axis=1)
    assert strategy_measures.claim("a - b", "accuracy", near, 40)["high"] == 1
    assert strategy_measures.claim("a - b", "B", near, 40)["high"] > 1


# ---------------------------------------------------------------- public files


def data(name: str) -> Path:
    path = Path(os.environ.get("PROMEDICAL_DATA_DIR", "nowhere")) / "esconv" / name
    if not path.exists():
        pytest.skip(f"PROMEDICAL_DATA_DIR has no esconv/{name}")
    return path


def test_the_published_predictions_have_the_bias_of_the_authors_formula():
    said, gold = strategy_measures.predictions(data("kang2024_results.json"))
    labels = list(dict.fromkeys(seekers.TEXTS["esconv"].values()))
    found = strategy_measures.measures(said, gold, labels=labels)
    assert len(said) == 1611 and round(found["B0"][0], 4) == 0.7666
    shares = [round(100 * found[name][0], 4) for name in ("accuracy", "Q", "QW")]
    assert shares == [24.4569, 21.8905, 22.4981]


def test_labels_are_read_however_they_are_written(tmp_path):
    rows = [
        {"strg_pred": "question", "strg_gold": "Questions"},
        {"strg_pred": "Other", "strg_gold": "Direct Guidance"},
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    assert strategy_measures.predictions(path) == (
        ["Question", "Others"],
        ["Question", "Suggestions"],
    )
    with pytest.raises(KitError, match="'Praise' is no strategy of ESConv"):
        strategy_measures.label("Praise")


def test_the_strategies_of_a_public_file_are_counted():
    turns = strategy_measures.esconv_turns(data("devWithStrategy_short.tsv"))
    assert len(turns) == 2985 and turns.count("Question") == 595 and turns.count("Others") == 510


def esc_pro() -> list[dict]:
    hello, other = {"role": "user", "content": "I am sad."}, {"strategy": PLAN, "content": "Plan."}
    good = {"role": "assistant", "content": "That is hard.", "strategy": VALIDATE}
    last = {"role": "assistant", "content": "Well done.", "strategy": AFFIRM, "negative": []}
    again = {"role": "user", "content": "Yes."}
    return [{"messages": [hello, good | {"negative": [other, other]}, again, last]}]


def test_esc_pro_is_counted_by_hand():
    pairs, counts = strategy_measures.esc_pro(esc_pro())
    [(history, chosen, rejected)] = pairs
    assert [turn.text for turn in history] == ["I am sad."]
    assert (chosen.strategy, rejected.strategy) == (VALIDATE, PLAN)
    assert counts == {
        "dialogues": 1,
        "utterances": 6,
        "seeker's turns": 2,
        "preferred turns": 2,
        "not preferred turns": 2,
        "mean dialogue length": 4.0,
        "pairs": 1,
        "doubles": 1,
    }


def test_esc_pro_with_the_roles_exchanged_or_without_its_pairs_is_named():
    exchanged = esc_pro()
    for message in exchanged[0]["messages"]:
        message["role"] = {"user": "assistant", "assistant": "user"}[message["role"]]
    with pytest.raises(KitError, match="dialogue 0, message 0: not a turn of the user"):
        strategy_measures.esc_pro(exchanged)
    bare = esc_pro()
    del bare[0]["messages"][1]["negative"], bare[0]["messages"][3]["negative"]
    with pytest.raises(KitError, match="no pair"):
        strategy_measures.esc_pro(bare)


def test_reported_counts_add_up_and_no_result_is_invented():
    known = strategy_measures.reported().set_index("quantity").value
    parts = ["seeker's turns", "preferred turns", "not preferred turns"]
    assert sum(int(known[part]) for part in parts) == int(known["utterances"])
    length = (int(known["seeker's turns"]) + int(known["preferred turns"])) / int(
        known["dialogues"]
    )
    assert round(length, 2) == float(known["mean dialogue length"])
    assert known["accuracy and F1 and bias of each model"] == "table not found"


def test_the_picture_of_a_tree_to_a_depth():
    roles = simulated()
    root, *_ = strategy_search.search(roles, (roles.turn(EARLY),))
    drawn = strategy_measures.drawn_tree(root, depth=2)
    written = [child for child in root.children if child.history]
    first = drawn[drawn.y == 1]
    assert set(drawn.y) == {1, 2} and len(first) == len(written)
    assert list(first.strategy[first.best]) == [VALIDATE] * (VALIDATE in set(first.strategy))
    assert dict(zip(first.strategy, first.visits)) == {n.strategy: n.visits for n in written}
    assert not drawn[["x", "y"]].duplicated().any()
    strategy_measures.plot_tree(drawn)


# ---------------------------------------------------------------- roles by endpoint


class Model:
    """An OpenAI-like client that plays all roles; what it says of a strategy is ``ratings``."""

    def __init__(self, ratings=None, ended=3):
        self.chat = SimpleNamespace(completions=self)
        self.api_key, self.requests, self.ratings, self.ended = "none", 0, ratings or RATED, ended

    def create(self, messages, response_format=None, **_):
        self.requests += 1
        asked = json.loads(messages[1]["content"])
        kind = response_format and response_format["json_schema"]["name"]
        said = {
            None: "I hear you.",
            "Ratings": {"ratings": [{"strategy": s, "rating": r} for s, r in self.ratings.items()]},
            "Spoken": {"text": "Well.", "ended": len(asked["conversation"]) >= 2 * self.ended},
            "Scores": dict.fromkeys(seekers.DIMENSIONS, 4),
        }[kind]
        text = said if kind is None else json.dumps(said)
        choice = SimpleNamespace(message=SimpleNamespace(content=text), finish_reason="stop")
        return SimpleNamespace(choices=[choice], usage=None)


def by_endpoint(folder: Path, model: Model) -> strategy_roles.ByEndpoint:
    answers, role = Answers(folder / "answers.sqlite"), Role(model="m", retries=0)
    ends = {name: Endpoint(name, role, "http://nowhere", answers) for name in strategy_roles.ROLES}
    for endpoint in ends.values():
        endpoint.__dict__["_client"] = model
    return strategy_roles.ByEndpoint(ends, "a quarrel")


def test_a_search_by_endpoints_goes_on_from_stored_answers(tmp_path):
    first = Model()
    roles = by_endpoint(tmp_path, first)
    root, iterations, calls = strategy_search.search(roles, roles.opening(), most=12)
    asked, again = first.requests, Model()
    roles = by_endpoint(tmp_path, again)
    assert strategy_search.search(roles, roles.opening(), most=12)[1:] == (iterations, calls)
    assert asked > 10 and again.requests == 0 and root.visits == iterations


def test_roles_without_an_endpoint_or_a_usable_answer_are_named(tmp_path):
    with pytest.raises(KitError, match="no endpoint for role seeker"):
        strategy_roles.ByEndpoint({n: None for n in strategy_roles.ROLES if n != "seeker"}, "")
    roles = by_endpoint(tmp_path, Model({AFFIRM: 3.0}))
    with pytest.raises(KitError, match="role strategist, turn 1: no usable answer in 4"):
        strategy_search.search(roles, roles.opening())
