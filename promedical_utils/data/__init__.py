"""Where instructions, rubrics and labels come from: sources, curation, annotation, roles."""
