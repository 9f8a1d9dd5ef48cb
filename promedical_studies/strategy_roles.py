"""The four roles of the search by endpoints: as ``seekers.Simulated``, without a truth. What an
endpoint has answered is stored, so a search that stops goes on where it was."""

import json
from collections.abc import Callable, Mapping

from pydantic import Field

from promedical_studies.seekers import STRATEGIES, TEXTS, History, Turn
from promedical_studies.strategy_search import points, priors
from promedical_utils.core.workspace import KitError
from promedical_utils.data.endpoints import Endpoint, Request
from promedical_utils.data.roles import Reply

ROLES = ("strategist", "supporter", "seeker", "support_judge")


class Rating(Reply):
    strategy: str
    rating: float


class Ratings(Reply):
    ratings: list[Rating]


class Spoken(Reply):
    text: str = Field(pattern=r"\S")
    ended: bool


class Scores(Reply):
    Empathy: float
    Information: float
    Humanoid: float
    Strategy: float


class ByEndpoint:
    """``endpoints``: one of each of ``ROLES``; ``scene``: the seeker's trouble, who speaks first. A
    tree asks about 2,000 requests. KitError for a role without a usable answer."""

    def __init__(self, endpoints: Mapping[str, Endpoint], scene: str):
        if missing := set(ROLES) - set(endpoints):
            raise KitError(f"no endpoint for role {min(missing)}: give one for each of {ROLES}")
        self.endpoints, self.scene = endpoints, scene

    def _ask(self, role: str, history: History, schema, check: Callable = id, **more):
        def checked(_, reply):
            try:
                check(reply)
            except KitError as error:  # asked again
                raise ValueError(str(error)) from None
            return reply

        said = [{"strategy": turn.strategy, "text": turn.text} for turn in history]
        content = {"scene": self.scene, "conversation": said, "strategies": STRATEGIES} | more
        texts = {"system": TEXTS["prompts"][role], "user": json.dumps(content, ensure_ascii=False)}
        messages = tuple({"role": name, "content": text} for name, text in texts.items())
        [answer] = self.endpoints[role].ask([Request(messages, schema)], checked)
        if answer.value is None:
            raise KitError(f"role {role}, turn {len(history)}: {answer.reason}; run again to go on")
        return answer.value

    def opening(self) -> History:
        return (self.reply(()),)

    def rate(self, history: History) -> list[tuple[str, float]]:
        reply = self._ask("strategist", history, Ratings, lambda reply: priors(_rated(reply)))
        return _rated(reply)

    def write(self, history: History, strategy: str) -> str:
        return self._ask("supporter", history, None, strategy=strategy).strip()

    def reply(self, history: History) -> Turn:
        spoken = self._ask("seeker", history, Spoken)
        return Turn("", spoken.text.strip(), spoken.ended)

    def score(self, history: History) -> dict[str, float]:
        def check(reply):
            points(reply.model_dump())

        return self._ask("support_judge", history[:-1], Scores, check).model_dump()


def _rated(reply: Ratings) -> list[tuple[str, float]]:
    return [(row.strategy, row.rating) for row in reply.ratings]
