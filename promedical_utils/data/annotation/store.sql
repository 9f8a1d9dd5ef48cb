-- The store of annotation: drafts that were given out, and a log of decisions that only grows.
PRAGMA synchronous = FULL;
PRAGMA journal_mode = WAL;

CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY,
    round TEXT NOT NULL,
    reviewer TEXT,                 -- none: it waits for whoever is free
    draft TEXT NOT NULL,           -- as JSON
    reason TEXT NOT NULL,          -- why it is held for review
    UNIQUE (round, draft, reason)  -- given out once
);
SELECT round, draft FROM items LIMIT 0; -- a store of another layout is refused, nothing added

CREATE TABLE IF NOT EXISTS decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    item INTEGER NOT NULL REFERENCES items,
    at TEXT NOT NULL,
    reviewer TEXT NOT NULL,
    action TEXT NOT NULL,          -- that of a Decision, or 'withdraw' or 'finish'
    criterion_id TEXT NOT NULL,
    decision TEXT                  -- the Decision as JSON
);
CREATE INDEX IF NOT EXISTS decisions_of_item ON decisions (item);

CREATE VIEW IF NOT EXISTS drafts AS
    SELECT items.*,
        (SELECT action FROM decisions WHERE item = items.id ORDER BY id DESC LIMIT 1)
            IS 'finish' AS finished
    FROM items;
