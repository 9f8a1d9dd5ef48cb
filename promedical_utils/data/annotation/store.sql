-- The store of annotation: items that were given out, and a log of events that only grows.
-- Views say what stands; a decision is every event that makes a new version of a draft.

CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY,
    key TEXT UNIQUE NOT NULL,      -- hash of round, content and reason: given out once
    kind TEXT NOT NULL,            -- 'draft' to review, or 'label': an answer by a criterion
    round TEXT NOT NULL,
    reviewer TEXT,                 -- none: it waits for whoever is free
    content TEXT NOT NULL,         -- the draft, or the task, as JSON
    reason TEXT NOT NULL           -- why a draft is held for review
);
SELECT kind FROM items LIMIT 0;    -- a store of another layout is refused before anything is added

CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    item INTEGER REFERENCES items,
    reviewer TEXT NOT NULL,
    at TEXT NOT NULL,
    action TEXT NOT NULL,          -- those of `decisions`, or 'sign in', 'type', 'stand', 'label'
    criterion_id TEXT NOT NULL,
    value TEXT                     -- a Decision, half-typed fields or a verdict; none takes it back
);
CREATE INDEX IF NOT EXISTS events_of_item ON events (item);
CREATE INDEX IF NOT EXISTS events_of_reviewer ON events (reviewer, action);

CREATE VIEW IF NOT EXISTS decisions AS
    SELECT id, item, at, reviewer, action, criterion_id, value AS decision FROM events
    WHERE action IN ('accept', 'edit', 'reject', 'add', 'withdraw', 'finish');

CREATE VIEW IF NOT EXISTS drafts AS
    SELECT id, round, reviewer, content, reason,
        (SELECT count(*) FROM decisions WHERE item = items.id) AS version,
        coalesce((SELECT action FROM decisions WHERE item = items.id ORDER BY id DESC LIMIT 1), '')
            = 'finish' AS finished
    FROM items WHERE kind = 'draft';

CREATE VIEW IF NOT EXISTS last_events AS -- of each reviewer and action: SQLite takes max's row
    SELECT reviewer, action, max(id) AS id, item, criterion_id, at FROM events
    GROUP BY reviewer, action;

CREATE VIEW IF NOT EXISTS labels AS
    SELECT id, round, content,
        (SELECT value FROM events WHERE item = items.id ORDER BY id DESC LIMIT 1) AS verdict
    FROM items WHERE kind = 'label';
