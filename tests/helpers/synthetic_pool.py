"""Synthetic pools of any size, a share of them duplicates, and how well these were found."""

import random
from collections.abc import Iterable, Iterator, Mapping

from promedical_utils.clinic.pool import near_miss, reworded, text_of
from promedical_utils.clinic.world import conditions, draw_patient, messages
from promedical_utils.core.workspace import short_hash

NEAR_MISS_SHARE = 0.05  # of a synthetic pool


def synthetic(n: int, seed: int, share: float = 0.2) -> Iterator[tuple[str, str, int, str]]:
    """``n`` rows (id, text, cluster, kind), a ``share`` of them duplicates: one by one, for any n.

    Rows of one cluster say the same. A near-miss is a cluster of its own, after the row that it is
    made from. Ids are drawn by hash, so that they tell nothing.
    """
    rng = random.Random(f"synthetic-{seed}")
    pool, made, cluster = conditions(), 0, 0
    miss = NEAR_MISS_SHARE / (1 - share - NEAR_MISS_SHARE)
    again = share / (1 - NEAR_MISS_SHARE)  # after each row of a cluster, the odds of one more

    def row(text: str, kind: str) -> tuple[str, str, int, str]:
        return f"s-{short_hash(seed, made)}", text, cluster, kind

    while made < n:
        patient = draw_patient(rng, made, seed, rng.choice(pool))
        text = text_of(messages(patient))
        kind = "kept"
        while True:
            yield row(reworded(text, rng) if kind == "duplicate" else text, kind)
            made, kind = made + 1, "duplicate"
            if made == n or rng.random() >= again:
                break
        cluster += 1
        if made < n and rng.random() < miss:
            yield row(near_miss(patient, text, rng), "near_miss")
            made, cluster = made + 1, cluster + 1


def scores(
    clusters: Mapping[str, int], near_misses: Iterable[str], kept_of: Mapping[str, str]
) -> dict[str, float]:
    """How well duplicates were found: ``kept_of`` is removed id -> the id that is kept for it.

    Over pairs of rows: precision is the share of the pairs put together that are of one true
    cluster, recall the share of the pairs of one true cluster that were put together. Removed rows:
    ``removed_rightly`` is the share whose kept row says the same, ``removed_of_true`` their number
    over that of the rows that had to go. A near-miss is kept when no row of another cluster stands
    for it.
    """
    from sklearn.metrics import pair_confusion_matrix  # slow to load

    true = list(clusters.values())
    number = {kept: n for n, kept in enumerate({kept_of.get(id_, id_) for id_ in clusters})}
    together = [number[kept_of.get(id_, id_)] for id_ in clusters]
    (_, wrongly), (missed, hits) = pair_confusion_matrix(true, together).tolist()
    right = sum(clusters[id_] == clusters[kept] for id_, kept in kept_of.items())
    misses = list(near_misses)
    return {
        "precision": hits / (hits + wrongly) if hits + wrongly else 1.0,
        "recall": hits / (hits + missed) if hits + missed else 1.0,
        "removed_rightly": right / len(kept_of) if kept_of else 1.0,
        "removed_of_true": right / max(1, len(clusters) - len(set(true))),
        "near_misses": len(misses),
        "near_misses_kept": sum(clusters[kept_of.get(i, i)] == clusters[i] for i in misses),
    }
