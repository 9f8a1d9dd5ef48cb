-- Criteria, answers and verdicts of the instructions in ``asked``, joined once (expansion.py).
-- ``row`` numbers the criteria in the order of the rubrics, ``answer`` the candidates in their file.

CREATE TABLE criterion AS
SELECT
    row_number() OVER (ORDER BY place, number) AS row, place,
    instruction_id, c.id AS criterion_id, c.dimension AS dimension, c.kind AS kind
FROM (
    SELECT
        file_row_number AS place, instruction_id,
        generate_subscripts(criteria, 1) AS number, unnest(criteria) AS c
    FROM rubrics SEMI JOIN asked USING (instruction_id)
);

CREATE TABLE answer AS
SELECT file_row_number AS answer, id AS candidate_id, instruction_id
FROM candidates SEMI JOIN asked USING (instruction_id);

CREATE VIEW said AS
SELECT candidate_id, criterion_id, verdict FROM verdicts WHERE judge = getvariable('judge');

-- An unknown verdict on safety counts as not met: the veto fails closed
CREATE TABLE judged AS
SELECT
    row, place, answer, candidate_id, criterion_id, instruction_id,
    verdict = 'unknown' AS unknown,
    verdict = 'met' AS met,
    verdict = 'not_met' OR (verdict = 'unknown' AND dimension = 'safety') AS failed
FROM said
JOIN answer USING (candidate_id)
LEFT JOIN criterion USING (instruction_id, criterion_id);

CREATE VIEW pair AS
SELECT
    chosen.instruction_id AS instruction_id, chosen.criterion_id AS criterion_id,
    chosen.candidate_id AS chosen_id, rejected.candidate_id AS rejected_id
FROM judged AS chosen JOIN judged AS rejected USING (row)
WHERE chosen.met AND rejected.failed
ORDER BY row, least(chosen.answer, rejected.answer), greatest(chosen.answer, rejected.answer);

-- What became of every two judged answers, a row a criterion
CREATE TABLE counted AS
SELECT
    *,
    verdicts * (verdicts - 1) // 2 AS comparisons,
    met * failed AS pairs,
    met * (met - 1) // 2 AS both_met,
    failed * (failed - 1) // 2 AS both_not_met,
    comparisons - pairs - both_met - both_not_met AS lost_to_unknown,
    (comparisons > 0 AND pairs = 0)::BIGINT AS never_discriminate
FROM (
    SELECT
        row, count(met) AS verdicts, count_if(unknown) AS unknown,
        count_if(met) AS met, count_if(failed) AS failed
    FROM criterion LEFT JOIN judged USING (row)
    GROUP BY row
)
JOIN criterion USING (row);

-- What ``Expansion`` reports; kinds in the order in which the rubrics first name them
CREATE VIEW kinds AS
SELECT
    dimension, kind, count(*) AS criteria,
    sum(verdicts)::BIGINT AS verdicts, sum(unknown)::BIGINT AS unknown,
    sum(comparisons)::BIGINT AS comparisons, sum(pairs)::BIGINT AS pairs,
    sum(both_met)::BIGINT AS both_met, sum(both_not_met)::BIGINT AS both_not_met,
    sum(lost_to_unknown)::BIGINT AS lost_to_unknown,
    sum(never_discriminate)::BIGINT AS never_discriminate
FROM counted JOIN (SELECT kind, min(row) AS first FROM criterion GROUP BY kind) USING (kind)
GROUP BY dimension, kind
ORDER BY list_position(getvariable('dimensions'), dimension), any_value(first);

CREATE VIEW silent AS
SELECT instruction_id, criterion_id, dimension, kind FROM counted WHERE never_discriminate ORDER BY row;

CREATE VIEW answers AS
SELECT (SELECT count(DISTINCT answer) FROM judged) AS judged, (SELECT count(*) FROM answer) AS made;
