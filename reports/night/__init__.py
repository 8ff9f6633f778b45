"""A night in numbers, its page, its summary in Markdown."""
