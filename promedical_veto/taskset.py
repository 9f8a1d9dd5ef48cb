"""The veto as an environment of verifiers, its taskset ``promedical-veto``: docs/verifiers.md."""

import asyncio
from collections.abc import Iterable

import verifiers.v1 as vf

from promedical_veto import scores


class VetoTaskConfig(vf.TaskConfig):
    data: str = ""  # a long table or a folder of records (docs/own_data.md)
    reward_model: str = ""  # folder of a trained reward model with its calibration


class VetoConfig(vf.TasksetConfig):
    task: VetoTaskConfig = VetoTaskConfig()
    split: str = "train"


class VetoTask(vf.Task[vf.TaskData, vf.State, VetoTaskConfig]):
    @property
    def key(self) -> str:
        return self.data.id

    async def _scores(self, trace: vf.Trace) -> dict[str, float]:
        if "veto" not in trace.info:
            known = (self.config.data, self.config.reward_model, self.data.id)
            answer = (trace.last_reply, not trace.is_truncated)
            trace.info["veto"] = await asyncio.to_thread(scores.of_answer, *known, *answer)
        return trace.info["veto"]

    @vf.metric
    async def metrics(self, trace: vf.Trace) -> dict[str, float]:
        found = await self._scores(trace)
        return {name: value for name, value in found.items() if name != "reward"}

    @vf.reward
    async def veto(self, trace: vf.Trace) -> float:
        return (await self._scores(trace))["reward"]


class VetoTaskset(vf.Taskset[VetoTask, VetoConfig]):
    def load(self) -> Iterable[VetoTask]:
        config = self.config.task
        records, _ = scores.load(config.data, config.reward_model)
        for asked in records.instructions_in(self.config.split):
            prompt = [m.model_dump() for m in asked.messages]
            yield VetoTask(vf.TaskData(id=asked.id, prompt=prompt), config)
