-- Answered requests by the hash of their content, and what each role has spent: every try, answered or not, and tokens.
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, role TEXT, model TEXT, request TEXT, text TEXT, finish TEXT, prompt INTEGER, completion INTEGER
);
CREATE TABLE IF NOT EXISTS spent (role TEXT PRIMARY KEY, requests INTEGER, tokens INTEGER);
