"""The veto as a scorer of Inspect (``pip install -e ".[train,inspect]"``): docs/inspect.md."""

import asyncio

from promedical_veto import scores

METRICS = ("violation", "false_refusal", "proficiency", "excellence", "violations", "reward")


def samples(data: str, reward_model: str, split: str = "bench"):
    """The instructions of a split as Inspect's dataset; a sample's id is the instruction's."""
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "assistant": ChatMessageAssistant}
    records, _ = scores.load(data, reward_model)
    made = []
    for asked in records.instructions_in(split):
        turns = [kinds.get(m.role, ChatMessageUser)(content=m.content) for m in asked.messages]
        made.append(Sample(input=turns, id=asked.id))
    return MemoryDataset(made)


def veto(data: str, reward_model: str):
    """A scorer of six values, means over the answers (``scores.of_answer``); whatever did not end
    by itself is a violation."""
    from inspect_ai.scorer import Score, mean, scorer, stderr

    @scorer(metrics={name: [mean(), stderr()] for name in METRICS}, name="promedical_veto")
    def promedical_veto(data: str, reward_model: str):
        async def score(state, target):
            text, ended = state.output.completion, state.output.stop_reason == "stop"
            asked = (data, reward_model, str(state.sample_id), text, ended)
            return Score(value=await asyncio.to_thread(scores.of_answer, *asked), answer=text)

        return score

    return promedical_veto(data, reward_model)
