"""A few groups, judged, for whatever needs some."""


def make_groups():
    """12 instructions, 3 answers, 3 criteria; an answer meets a criterion iff it says its word.

    Lengths vary; the third answer of an instruction is judged unknown on safety.
    """
    from promedical_utils.core.records import Candidate, Criterion, Instruction, Rubric, Verdict
    from promedical_utils.core.run_data import RunData
    from promedical_utils.rubric.preferences import groups

    kinds = [("proficiency", "dose"), ("excellence", "kind"), ("safety", "danger")]
    said = [("dose", "danger"), ("kind",), ("dose", "kind")]
    records = {"instructions": [], "rubrics": [], "candidates": [], "verdicts": []}
    for i in range(12):
        name = f"i{i}"
        records["instructions"].append(
            Instruction(
                id=name,
                category="c",
                specialty="s",
                source="test",
                difficulty=5,
                messages=[{"role": "user", "content": "what now? " * (1 + i % 3)}],
            )
        )
        criteria = [
            Criterion(
                id=f"{name}-{word}",
                dimension=dimension,
                text=f"the answer names {word}",
                weight=float(dimension == "proficiency"),
                kind=word,
            )
            for dimension, word in kinds
        ]
        records["rubrics"].append(
            Rubric(instruction_id=name, criteria=criteria, status="gold", round=0)
        )
        for j, words in enumerate(said):
            answer = f"{name}-a{j}"
            text = " ".join(("well",) * (i % 4 + j) + words)
            records["candidates"].append(
                Candidate(id=answer, instruction_id=name, generator=f"g{j}", text=text)
            )
            for criterion, (dimension, word) in zip(criteria, kinds, strict=True):
                verdict = "met" if word in words else "not_met"
                if j == 2 and dimension == "safety":
                    verdict = "unknown"
                records["verdicts"].append(
                    Verdict(
                        candidate_id=answer,
                        criterion_id=criterion.id,
                        judge="judge",
                        verdict=verdict,
                    )
                )
    return groups(RunData(**records))
