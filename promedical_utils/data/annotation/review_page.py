"""The review page for JupyterLab: message on one side, the draft criterion by criterion beside it.

``Desk`` is what a reviewer sees and may do, without a browser. ``Page`` shows it as a widget.
The page is one anywidget and not a box of ipywidgets controls: those have no key events, send a
click before the last letters typed, and look alive when the kernel is gone. This one sends the
typed text with the click, and says so when nobody answers.
"""

from collections.abc import Mapping
from dataclasses import replace
from html import escape
from pathlib import Path

import anywidget
import traitlets

from promedical_utils.core.records import Criterion, Decision, Instruction
from promedical_utils.core.workspace import KitError
from promedical_utils.data.annotation.review import broken_rule
from promedical_utils.data.annotation.store import Item, Store, TakenOver
from promedical_utils.rubric import display

DONE = {"accept": "accepted", "edit": "edited", "reject": "rejected", "add": "added"}


class Desk:
    """A reviewer at work on one draft after another; every decision is saved as it is made.

    ``do(action, ...)``: each ``do_`` method is an action; ``view()`` is all that a page shows. What
    goes wrong is in the view and never raised: the page must stay usable.
    """

    def __init__(self, store: Store, reviewer: str, instructions: Mapping[str, Instruction]):
        self.store, self.instructions = store, instructions
        self.session = store.sign_in(reviewer)
        self.status, self.error, self.closed = self.session.note, "", False
        self.failed = ""  # the action that the error is of
        self.item: Item | None = None
        self.at = ""  # the criterion that is decided on
        place = store.place(reviewer)
        if place and (place[0], False) in store.listed(reviewer):
            self._open(store.item(place[0]), place[1])
        else:
            self._open(store.next_item(reviewer))

    def do(self, action: str, item: int | None = None, **given) -> None:
        """Do one thing. ``given``: ``at``, a criterion id, and ``fields`` for type and save.

        ``item`` and ``at`` are what the reviewer saw: pages lag, and a decision is on what was
        seen. Without them it is on what is open.
        """
        if action != "type" or self.failed == "type":
            self.error = ""  # typing on does not take away that a save failed
        try:
            method = getattr(self, f"do_{action}", None)
            if method is None:
                raise KitError(f"{action!r} is nothing that this page does")
            if self.item is None and action not in ("earlier", "later", "next"):
                raise KitError("nothing is open: no draft is left for you")
            if item is not None and (self.item is None or item != self.item.id):
                raise KitError("not done: another rubric had come up; look at it, then do it again")
            if action not in ("select", "type") and "at" in given:
                self.do_select(given.pop("at"))
            method(**given)
        except KitError as error:
            self.error, self.failed, self.status = str(error), action, ""
            self.closed = isinstance(error, TakenOver)
            self._reload()

    def do_accept(self):
        added = self.item.decisions.get(self.at)
        if added and added.action == "add":
            raise KitError("an added criterion stands as it is: edit it, or take it back")
        self._decide("accept", self._drafted(self.at))

    def do_edit(self):
        self._open_form("edit", self._current(self.at))

    def do_reject(self):
        if self._drafted(self.at):
            self._open_form("reject", None)
        else:
            self.do_undo()

    def do_add(self):
        taken = {*self._rows(), *(e["criterion_id"] for e in self.store.history(self.item.id))}
        number = 1
        while (name := f"{self.item.draft.instruction_id}-added-{number}") in taken:
            number += 1
        self.at = name
        self._open_form("add", None)

    def do_save(self, fields: Mapping | None = None):
        if self.at not in self.item.typed:
            raise KitError("nothing is typed here: choose accept, edit or reject")
        if fields:
            self.do_type(fields)  # kept first, so that a refused save loses no text
        typed, drafted = self.item.typed[self.at], self._drafted(self.at)
        action, criterion, reason = typed["form"], None, typed["reason"].strip()
        if action == "reject" and not reason:
            raise KitError("say why it is rejected: the writer learns from the reason")
        if action != "reject":
            criterion = self._typed_criterion(typed)
            same = drafted and dict(criterion) == dict(drafted)  # opened, and left as it was
            action = "accept" if same else "edit" if drafted else "add"
        self._decide(action, criterion, reason)

    def do_cancel(self):
        self.store.keep(self.session, self.item.id, self.at, None)
        self._taken_back("typed text thrown away")

    def do_undo(self):
        number = self._rows().index(self.at) + 1
        self.store.withdraw(self.session, self.item.id, self.at, self.item.version)
        self._taken_back(f"criterion {number}: decision taken back")

    def do_type(self, fields: Mapping, at: str = ""):
        at = at or self.at
        typed = self.item.typed.get(at)
        if typed is None:
            return  # it was saved or cancelled meanwhile
        typed = typed | {n: str(fields[n]) for n in typed if n in fields and n != "form"}
        kept = self.store.keep(self.session, self.item.id, at, typed)
        # not read anew: the version stays that of what the reviewer has seen
        self.item = replace(self.item, typed=self.item.typed | {at: typed}, saved_at=kept)
        self.status = "typed text kept"

    def do_select(self, at: str):
        if at not in self._rows():
            raise KitError(f"no criterion {at} here")
        if at != self.at:
            self._stand(at)

    def do_previous(self):
        self._step(-1)

    def do_next(self):
        if self.item is None:
            self._open(self.store.next_item(self.session.reviewer))
        else:
            self._step(1)

    def do_finish(self):
        name = self.item.draft.instruction_id
        self.store.finish(self.session, self.item.id, self.item.version)
        self._open(self.store.next_item(self.session.reviewer))
        self.status = f"rubric of {name} finished: it is gold"

    def do_earlier(self):
        self._open_beside(-1)

    def do_later(self):
        self._open_beside(1)

    def _decide(self, action: str, criterion: Criterion | None, reason: str = ""):
        """Save a decision unless it stands already, and go on to what is undecided."""
        decision = Decision.model_construct(
            instruction_id=self.item.draft.instruction_id,
            criterion_id=self.at,
            reviewer=self.session.reviewer,
            action=action,
            criterion=criterion,
            reason=reason,
        )
        stands = self.item.decisions.get(self.at)
        if stands is None or dict(stands) != dict(decision) or self.item.typed.get(self.at):
            self.store.save(self.session, self.item.id, decision, self.item.version)
            self._reload()
        rows = self._rows()
        number = rows.index(self.at) + 1
        self.status = f"criterion {number} {DONE[action]}"
        undecided = [r for r in rows[number:] + rows[:number] if r not in self.item.decisions]
        self._stand(undecided[0] if undecided else self.at)

    def _open_form(self, form: str, criterion: Criterion | None):
        fields = {"form": form, "dimension": "safety", "text": "", "weight": "0", "reason": ""}
        if criterion:
            fields |= {"dimension": criterion.dimension, "text": criterion.text}
            fields["weight"] = f"{criterion.weight:.4g}"
        self.store.keep(self.session, self.item.id, self.at, fields)
        self.status = ""
        self._stand(self.at)
        self._reload()

    def _typed_criterion(self, typed: Mapping) -> Criterion:
        try:
            weight = float(typed["weight"].replace(",", ".") or 0)
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= 1:
            raise KitError(f"weight {typed['weight']!r}: give a number from 0 to 1")
        if not typed["text"].strip():
            raise KitError("the criterion has no text: write it, or cancel")
        before = self._current(self.at)
        if before and f"{before.weight:.4g}" == typed["weight"]:
            weight = before.weight  # left as it was, and shown with fewer digits than it has
        return Criterion.model_construct(
            id=self.at,
            dimension=typed["dimension"],
            text=typed["text"].strip(),
            weight=weight if typed["dimension"] == "proficiency" else 0.0,
            kind=before.kind if before else "unspecified",
        )

    def _taken_back(self, status: str):
        self._reload()
        self.status = status
        if self.at not in self._rows():  # an addition
            self._open(self.item)

    def _open(self, item: Item | None, at: str = ""):
        self.item = item
        rows = self._rows() if item else []
        if at not in rows:
            at = next((r for r in rows if r not in item.decisions), rows[0] if rows else "")
        self.at = at
        if item and not self.closed:
            self.store.stand(self.session, item.id, at)

    def _stand(self, at: str):
        self.at = at
        self.store.stand(self.session, self.item.id, at)

    def _step(self, step: int):
        """To the criterion beside this one."""
        rows = self._rows()
        self._stand(_moved(rows, rows.index(self.at), step) if rows else "")

    def _open_beside(self, step: int):
        """Open the draft before or after this one."""
        listed = [number for number, _ in self.store.listed(self.session.reviewer)]
        if not listed:
            raise KitError("no draft has been given to you yet")
        here = listed.index(self.item.id) if self.item and self.item.id in listed else len(listed)
        self._open(self.store.item(_moved(listed, here, step)))
        self.status = ""

    def _reload(self):
        if self.item:
            try:
                self.item = self.store.item(self.item.id)
            except KitError as error:
                self.error = str(error)

    def _rows(self) -> list[str]:
        """Ids of the criteria on the page: the draft's, then what was added."""
        drafted = [c.id for c in self.item.draft.criteria]
        return list(dict.fromkeys([*drafted, *self.item.decisions, *self.item.typed]))

    def _drafted(self, criterion_id: str) -> Criterion | None:
        return next((c for c in self.item.draft.criteria if c.id == criterion_id), None)

    def _current(self, criterion_id: str) -> Criterion | None:
        """The criterion as it was decided, else as it was drafted; None for a new one."""
        decision = self.item.decisions.get(criterion_id)
        return (decision and decision.criterion) or self._drafted(criterion_id)

    def view(self) -> dict:
        """Everything that the page shows, as JSON."""
        listed = self.store.listed(self.session.reviewer)
        return {
            "reviewer": self.session.reviewer,
            "finished": sum(finished for _, finished in listed),
            "total": len(listed),
            "said": self.status,
            "error": self.error,
            "closed": self.closed,
            "dimensions": list(display.COLOURS),
            "item": self._item_view([number for number, _ in listed]) if self.item else None,
        }

    def _item_view(self, listed: list[int]) -> dict:
        item, name = self.item, self.item.draft.instruction_id
        asked = self.instructions.get(name)
        lost = f"The message of {name} was not given to this page: do not judge without it."
        return {
            "id": item.id,
            "place": listed.index(item.id) + 1 if item.id in listed else 0,
            "message": display.message(asked).html if asked else f"<p>{escape(lost)}</p>",
            "source": asked.source if asked else "unknown",
            "reason": item.reason or broken_rule(item.draft),
            "version": item.version,
            "done": item.finished,
            "saved_at": item.saved_at,
            "left": sum(c.id not in item.decisions for c in item.draft.criteria),
            "at": self.at,
            "form": item.typed.get(self.at),
            "criteria": [self._criterion_view(n, row) for n, row in enumerate(self._rows(), 1)],
        }

    def _criterion_view(self, number: int, criterion_id: str) -> dict:
        decision, current = self.item.decisions.get(criterion_id), self._current(criterion_id)
        dimension = current.dimension if current else ""
        edited = decision and decision.action == "edit"
        return {
            "id": criterion_id,
            "number": number,
            "state": decision.action if decision else "open",
            "typed": criterion_id in self.item.typed,
            "dimension": dimension,
            "colour": display.COLOURS.get(dimension, display.GREY),
            "text": current.text if current else "",
            "weight": f"{current.weight:.2f}" if current and current.weight else "",
            "was": _changed(self._drafted(criterion_id), current) if edited else "",
            "reason": decision.reason if decision else "",
        }


def _changed(before: Criterion, after: Criterion) -> str:
    """What an edit changed, as it was before."""
    words = {"dimension": "{}", "weight": "weight {:.2f}", "text": "“{}”"}
    was = {name: getattr(before, name) for name in words}
    return ", ".join(words[n].format(was[n]) for n in words if was[n] != getattr(after, n))


def _moved(rows: list, here: int, step: int):
    """The row a step from ``here``, or the last one on that side."""
    return rows[min(max(here + step, 0), len(rows) - 1)]


class Page(anywidget.AnyWidget):
    """The review page of one reviewer: ``Page(store, "ann", instructions)`` ends a cell.

    ``instructions`` are ``records.Instruction`` by id. Run the cell again after a closed tab or a
    killed kernel: it stands where it was, half-typed text included.
    """

    _esm = Path(__file__).with_suffix(".js")
    _css = Path(__file__).with_suffix(".css")
    view = traitlets.Dict().tag(sync=True)

    def __init__(self, store: Store, reviewer: str, instructions: Mapping[str, Instruction]):
        self.desk = Desk(store, reviewer, instructions)
        super().__init__(view=self.desk.view())
        self.on_msg(self._answer)

    def _answer(self, _, message: dict, __) -> None:
        message = dict(message)
        number = message.pop("number")
        self.desk.do(**message)
        self.view = {**self.desk.view(), "answered": number}

    def __repr__(self) -> str:
        return f"<review page of {self.desk.session.reviewer}>"
