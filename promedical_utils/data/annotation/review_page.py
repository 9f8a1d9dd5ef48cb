"""The review page for JupyterLab: message on one side, the draft criterion by criterion beside it.

The page is one anywidget and not a box of ipywidgets controls: those have no key events, send a
click before the last letters typed, and look alive when the kernel is gone. This one keeps what is
typed until it is saved or cancelled, and says so when nobody answers.
"""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import anywidget
import traitlets

from promedical_utils.core.records import Criterion, Decision, Instruction
from promedical_utils.core.workspace import KitError
from promedical_utils.data.annotation import review
from promedical_utils.data.annotation.store import Item, Store
from promedical_utils.rubric import display


class Desk:
    """What a reviewer sees and may do, draft after draft; every decision is saved as it is made."""

    def __init__(self, store: Store, reviewer: str, instructions: Mapping[str, Instruction]):
        if not reviewer.strip():
            raise KitError("the review page needs a name: it stands beside every decision")
        self.store, self.reviewer, self.instructions = store, reviewer, instructions
        self.item, self.error = store.next_item(reviewer), ""

    def do(self, action: str, item: int | None, at: str = "", fields: Mapping | None = None):
        """Accept, edit, reject, add, undo, finish, or go to the earlier or later draft.

        ``item`` and ``at`` are the draft and the criterion that the reviewer saw: pages lag.
        ``fields`` are what was typed: reason and, but for a rejection, text, dimension, weight.
        """
        self.error = ""
        try:
            if item != (self.item and self.item.id):
                raise KitError("not done: another rubric had come up; look at it, then do it again")
            if action in ("earlier", "later"):
                self._turn(-1 if action == "earlier" else 1)
            elif action == "undo":
                self.store.withdraw(item, self.reviewer, at, self.item.version)
            elif action == "finish":
                self.store.finish(item, self.reviewer, self.item.version)
                self.item = self.store.next_item(self.reviewer)
            else:
                made = self._decision(action, at, fields or {})
                if self.item.decisions.get(made.criterion_id) != made:  # said again, nothing new
                    self.store.save(item, made, self.item.version)
        except KitError as error:
            self.error = str(error)
        if self.item:
            self.item = self.store.item(self.item.id)

    def _turn(self, step: int) -> None:
        """To the draft before or after; past the last one to what may have been given since."""
        listed = [number for number, _ in self.store.listed(self.reviewer)]
        place = (listed.index(self.item.id) if self.item else len(listed)) + step
        if 0 <= place < len(listed):
            self.item = self.store.item(listed[place])
        elif step > 0:
            self.item = self.store.next_item(self.reviewer) or self.item

    def _decision(self, action: str, at: str, fields: Mapping) -> Decision:
        draft, given = self.item.draft, {}
        drafted = next((c for c in draft.criteria if c.id == at), None)
        if action in ("edit", "add"):
            at = at or f"{draft.instruction_id}-added-{self.item.version + 1}"
            decided, weight = self.item.decisions.get(at), fields["weight"].replace(",", ".")
            before = (decided and decided.criterion) or drafted
            if fields["dimension"] != "proficiency":
                weight = 0.0
            elif before and weight == f"{before.weight:.4g}":
                weight = before.weight  # left as it was, and shown with fewer digits than it has
            given = {"text": fields["text"].strip(), "dimension": fields["dimension"]}
            given["weight"] = weight
            # an addition stays one when it is edited; opened and left as it was, a draft's stands
            action = "edit" if drafted else "add"
            if drafted and dict(drafted) == dict(drafted) | given:
                action = "accept"
        reason = fields.get("reason", "").strip()
        return review.make_decision(draft, self.reviewer, at, action, given, reason)

    def view(self) -> dict:
        """Everything that the page shows, as JSON, errors too: the page must stay usable."""
        listed, item = dict(self.store.listed(self.reviewer)), self.item
        return {
            "reviewer": self.reviewer,
            "finished": sum(listed.values()),
            "total": len(listed),
            "error": self.error,
            "dimensions": list(display.COLOURS),
            "item": item and self._item_view(item, list(listed).index(item.id) + 1),
        }

    def _item_view(self, item: Item, place: int) -> dict:
        name = item.draft.instruction_id
        asked = self.instructions.get(name)
        lost = f"The message of {name} was not given to this page: do not judge without it."
        drafted = {c.id: c for c in item.draft.criteria}
        decided = {at: d.criterion for at, d in item.decisions.items() if d.criterion}
        return {
            "id": item.id,
            "place": place,
            "message": display.message(asked).html if asked else f"<p>{escape(lost)}</p>",
            "source": asked.source if asked else "unknown",
            "reason": item.reason or review.broken_rule(item.draft),
            "done": item.finished,
            "saved_at": item.saved_at,
            "criteria": [
                _criterion_view(criterion, drafted.get(at), item.decisions.get(at))
                for at, criterion in (drafted | decided).items()
            ],
        }


def _criterion_view(now: Criterion, before: Criterion | None, decision: Decision | None) -> dict:
    """A criterion as it stands; ``was`` is what an edit changed, as it was before."""
    was = ""
    if before and decision and decision.action == "edit":
        words = {"dimension": before.dimension, "weight": f"weight {before.weight:.2f}"}
        words["text"] = f"“{before.text}”"
        was = ", ".join(words[n] for n in words if getattr(before, n) != getattr(now, n))
    return dict(now) | {
        "weight": f"{now.weight:.4g}",
        "state": decision.action if decision else "open",
        "colour": display.COLOURS.get(now.dimension, display.GREY),
        "was": was,
        "reason": decision.reason if decision else "",
    }


class Page(anywidget.AnyWidget):
    """The review page of one reviewer: ``Page(store, "ann", instructions)`` ends a cell.

    ``instructions`` are ``records.Instruction`` by id. Run the cell again after a closed tab or a
    killed kernel: every decision is there.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, store: Store, reviewer: str, instructions: Mapping[str, Instruction]):
        self.desk = Desk(store, reviewer, instructions)
        super().__init__(view=self.desk.view())
        self.on_msg(self._answer)

    def _answer(self, _, message: dict, __) -> None:
        self.desk.do(**message["given"])
        self.view = {**self.desk.view(), "answered": message["number"]}

    def __repr__(self) -> str:  # the widget's own would write the whole view into the notebook
        return f"<review page of {self.desk.reviewer}>"
