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
from promedical_utils.data.annotation.review import Item, Store, TakenOver, broken_rule
from promedical_utils.rubric import display

FORMS = ("edit", "reject", "add")
ACTIONS = (
    "accept",
    "edit",
    "reject",
    "add",
    "save",
    "cancel",
    "undo",
    "type",
    "select",
    "previous",
    "next",
    "finish",
    "earlier",
    "later",
)


class Desk:
    """A reviewer at work on one draft after another; every decision is saved as it is made.

    ``do(action, ...)`` is one of ``ACTIONS``; ``view()`` is all that a page shows. What goes wrong
    is in the view and never raised: the page must stay usable.
    """

    def __init__(self, store: Store, reviewer: str, instructions: Mapping[str, Instruction]):
        self.store, self.instructions = store, instructions
        self.session = store.sign_in(reviewer)
        self.said, self.error, self.closed = self.session.note, "", False
        self.failed = ""  # the action that the error is of
        self.item: Item | None = None
        self.at = ""
        place = store.place(reviewer)
        listed = store.listed(reviewer)
        if place and (place[0], False) in listed:
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
            if action not in ACTIONS:
                raise KitError(f"{action!r} is nothing that this page does")
            if self.item is None and action not in ("earlier", "later", "next"):
                raise KitError("nothing is open: no draft is left for you")
            if item is not None and (self.item is None or item != self.item.id):
                raise KitError("not done: another rubric had come up; look at it, then do it again")
            if action not in ("select", "type") and "at" in given:
                self._select(given.pop("at"))
            getattr(self, f"_{action}")(**given)
        except KitError as error:
            self.error, self.failed, self.said = str(error), action, ""
            self.closed = isinstance(error, TakenOver)
            self._reload()

    # -- what can be done

    def _accept(self):
        added = self.item.decisions.get(self.at)
        if added and added.action == "add":
            raise KitError("an added criterion stands as it is: edit it, or take it back")
        self._decide("accept", self._drafted(self.at))

    def _edit(self):
        self._form("edit", self._standing(self.at) or self._drafted(self.at))

    def _reject(self):
        if self._is_added(self.at):
            return self._undo()
        self._form("reject", None)

    def _add(self):
        taken = {*self._rows(), *(e["criterion_id"] for e in self.store.history(self.item.id))}
        number = 1
        while (name := f"{self.item.draft.instruction_id}-added-{number}") in taken:
            number += 1
        self.at = name
        self._form("add", None)

    def _save(self, fields: Mapping | None = None):
        typed = self.item.typed.get(self.at)
        if typed is None:
            raise KitError("nothing is typed here: choose accept, edit or reject")
        if fields:
            self._type(fields, self.at)  # kept first, so that a refused save loses no text
            typed = self.item.typed[self.at]
        if typed["form"] == "reject":
            if not typed["reason"].strip():
                raise KitError("say why it is rejected: the writer learns from the reason")
            return self._decide("reject", None, typed["reason"].strip())
        criterion = self._criterion(typed)
        if self._is_added(self.at):
            return self._decide("add", criterion, typed["reason"].strip())
        drafted = self._drafted(self.at)
        same = dict(criterion) == dict(drafted)  # opened, and left as it was
        self._decide("accept" if same else "edit", criterion, typed["reason"].strip())

    def _cancel(self):
        self.store.keep(self.session, self.item.id, self.at, None)
        self._reload()
        self.said = "typed text thrown away"
        self._step()

    def _undo(self):
        number = self._number(self.at)
        self.store.withdraw(self.session, self.item.id, self.at, self.item.version)
        self._reload()
        self.said = f"criterion {number}: decision taken back"
        self._step()

    def _type(self, fields: Mapping, at: str = ""):
        at = at or self.at
        typed = self.item.typed.get(at)
        if typed is None:
            return  # it was saved or cancelled meanwhile
        given = {name: str(fields.get(name, typed[name])) for name in typed if name != "form"}
        typed = {**typed, **given}
        kept = self.store.keep(self.session, self.item.id, at, typed)
        # not read anew: the version stays that of what the reviewer has seen
        typed = {**self.item.typed, at: typed}
        self.item = replace(self.item, typed=typed, saved_at=max(kept, self.item.saved_at))
        self.said = "typed text kept"

    def _select(self, at: str):
        if at not in self._rows():
            raise KitError(f"no criterion {at} here")
        if at != self.at:
            self._stand(at)

    def _previous(self):
        rows = self._rows()
        self._stand(rows[max(rows.index(self.at) - 1, 0)] if rows else "")

    def _next(self):
        if self.item is None:
            return self._open(self.store.next_item(self.session.reviewer))
        rows = self._rows()
        self._stand(rows[min(rows.index(self.at) + 1, len(rows) - 1)] if rows else "")

    def _finish(self):
        name = self.item.draft.instruction_id
        self.store.finish(self.session, self.item.id, self.item.version)
        self._open(self.store.next_item(self.session.reviewer))
        self.said = f"rubric of {name} finished: it is gold"

    def _earlier(self):
        self._move(-1)

    def _later(self):
        self._move(1)

    # -- how it is done

    def _decide(self, action: str, criterion: Criterion | None, reason: str = ""):
        name = self.item.draft.instruction_id
        decision = Decision.model_construct(
            instruction_id=name,
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
        done = {"accept": "accepted", "edit": "edited", "reject": "rejected", "add": "added"}
        self.said = f"criterion {self._number(self.at)} {done[action]}"
        rows = self._rows()
        after = rows.index(self.at) + 1
        undecided = [r for r in rows[after:] + rows[:after] if r not in self.item.decisions]
        self._stand(undecided[0] if undecided else self.at)

    def _form(self, form: str, criterion: Criterion | None):
        fields = {"form": form, "dimension": "safety", "text": "", "weight": "0", "reason": ""}
        if criterion:
            fields |= {"dimension": criterion.dimension, "text": criterion.text}
            fields["weight"] = f"{criterion.weight:.4g}"
        self.store.keep(self.session, self.item.id, self.at, fields)
        self.said = ""
        self._stand(self.at)
        self._reload()

    def _criterion(self, typed: Mapping) -> Criterion:
        try:
            weight = float(typed["weight"].replace(",", ".") or 0)
        except ValueError:
            weight = -1.0
        if not 0 <= weight <= 1:
            raise KitError(f"weight {typed['weight']!r}: give a number from 0 to 1")
        if not typed["text"].strip():
            raise KitError("the criterion has no text: write it, or cancel")
        before = self._standing(self.at) or self._drafted(self.at)
        if before and f"{before.weight:.4g}" == typed["weight"]:
            weight = before.weight  # left as it was, and shown with fewer digits than it has
        return Criterion.model_construct(
            id=self.at,
            dimension=typed["dimension"],
            text=typed["text"].strip(),
            weight=weight if typed["dimension"] == "proficiency" else 0.0,
            kind=before.kind if before else "unspecified",
        )

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

    def _step(self):
        if self.at not in self._rows():  # an addition that was taken back
            self._open(self.item)

    def _move(self, step: int):
        listed = [number for number, _ in self.store.listed(self.session.reviewer)]
        if not listed:
            raise KitError("no draft has been given to you yet")
        here = listed.index(self.item.id) if self.item and self.item.id in listed else len(listed)
        self._open(self.store.item(listed[min(max(here + step, 0), len(listed) - 1)]))
        self.said = ""

    def _reload(self):
        if self.item:
            try:
                self.item = self.store.item(self.item.id)
            except KitError as error:
                self.error = str(error)

    def _rows(self) -> list[str]:
        names = [c.id for c in self.item.draft.criteria]
        more = [*self.item.decisions, *self.item.typed]
        return names + [name for name in dict.fromkeys(more) if name not in names]

    def _number(self, criterion_id: str) -> int:
        return self._rows().index(criterion_id) + 1

    def _drafted(self, criterion_id: str) -> Criterion | None:
        return next((c for c in self.item.draft.criteria if c.id == criterion_id), None)

    def _standing(self, criterion_id: str) -> Criterion | None:
        decision = self.item.decisions.get(criterion_id)
        return decision.criterion if decision else None

    def _is_added(self, criterion_id: str) -> bool:
        return self._drafted(criterion_id) is None

    # -- what is seen

    def view(self) -> dict:
        """Everything that the page shows, as JSON."""
        listed = self.store.listed(self.session.reviewer)
        return {
            "reviewer": self.session.reviewer,
            "finished": sum(finished for _, finished in listed),
            "total": len(listed),
            "said": self.said,
            "error": self.error,
            "closed": self.closed,
            "dimensions": list(display.COLOURS),
            "item": self._seen([number for number, _ in listed]) if self.item else None,
        }

    def _seen(self, listed: list[int]) -> dict:
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
            "criteria": [self._criterion_seen(n, row) for n, row in enumerate(self._rows(), 1)],
        }

    def _criterion_seen(self, number: int, criterion_id: str) -> dict:
        decision = self.item.decisions.get(criterion_id)
        drafted, standing = self._drafted(criterion_id), self._standing(criterion_id)
        shown = standing or drafted
        edited = decision and decision.action == "edit"
        return {
            "id": criterion_id,
            "number": number,
            "state": decision.action if decision else "open",
            "typed": criterion_id in self.item.typed,
            "dimension": shown.dimension if shown else "",
            "colour": display.COLOURS.get(shown.dimension if shown else "", display.GREY),
            "text": shown.text if shown else "",
            "weight": f"{shown.weight:.2f}" if shown and shown.weight else "",
            "was": _in_words(drafted, standing) if edited else "",
            "reason": decision.reason if decision else "",
        }


def _in_words(before: Criterion, after: Criterion) -> str:
    """What an edit changed, as it was before."""
    was = []
    if before.dimension != after.dimension:
        was.append(before.dimension)
    if before.weight != after.weight:
        was.append(f"weight {before.weight:.2f}")
    if before.text != after.text:
        was.append(f"“{before.text}”")
    return ", ".join(was)


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
