"""A tiny alignment in processes of its own, for the tests that kill it or share it out.

``align_tiny.py BASE OUT RANK [MOMENT ...]``: OUT/whole in one go, then OUT/killed, with SIGKILL at
each moment ("step 1" and the like) in turn, then to its end; prints how each process ended. Without
moments the run is OUT itself, which ``accelerate launch`` may share out.
"""

import json
import os
import signal
import sys
from pathlib import Path

from accelerate import PartialState
from helpers.policies import INSTRUCTIONS, RUBRICS, Scorer, by_letter, letter_scores, small

from promedical_utils.policy import training, veto_reward

base, out, rank, *moments = sys.argv[1:]
moment = ""


def reached(now: str) -> None:
    if now == moment:
        os.kill(os.getpid(), signal.SIGKILL)


class Killed(training.Curve):
    def on_step_begin(self, args, state, control, **_):
        reached(f"step {state.global_step}")

    def on_save(self, args, state, control, **rest):
        reached(f"saved {state.global_step}")
        super().on_save(args, state, control, **rest)

    def _evaluate(self, step, model):
        self.step = step
        super()._evaluate(step, model)
        reached(f"evaluated {step}")

    def measure(self, model):
        found = super().measure(model)
        reached(f"evaluating {self.step}")
        return found


training.Curve = Killed
finish = training.finish


def finishing(trainer, *rest):
    reached(f"finishing {trainer.state.global_step}")
    return finish(trainer, *rest)


training.finish = finishing
call = veto_reward.RubricReward.__call__


def align(folder: Path) -> None:
    def logged(self, prompts, completions, instruction_id, trainer_state=None, **named):
        values = call(self, prompts, completions, instruction_id, **named)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"rewards-{PartialState().process_index}.jsonl").open("a") as file:
            for name, answer, value in zip(instruction_id, completions, values, strict=True):
                row = [trainer_state.global_step, name, answer[-1]["content"], value]
                file.write(json.dumps(row) + "\n")
        return values

    veto_reward.RubricReward.__call__ = logged
    profile = small(grpo_steps=4, grpo_lora_rank=int(rank), grpo_learning_rate=1e-3)
    held_out = training.HeldOut(INSTRUCTIONS[6:], by_letter, by_letter)
    job = training.Job(folder, profile, RUBRICS, INSTRUCTIONS[:6], held_out)
    training.train(job, base, Scorer(letter_scores))


if not moments:
    align(Path(out))
for name, moment in (
    [("whole", ""), *(("killed", m) for m in moments), ("killed", "")] if moments else []
):
    child = os.fork()  # with everything imported: a fresh start takes longer than the run
    if not child:
        align(Path(out, name))
        os._exit(0)
    print(json.dumps([moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]), flush=True)
