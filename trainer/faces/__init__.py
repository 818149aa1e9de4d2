"""Pictures of invented people: who sits (`sitter`), and how they are drawn (`picture`, part by part)."""
