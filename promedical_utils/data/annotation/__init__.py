"""People's decisions: review of rubric drafts, on a page or in Label Studio."""
