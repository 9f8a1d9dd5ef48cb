"""People's decisions: review of rubric drafts, double-blind adjudication, Label Studio."""
