"""One run for people: summary, finding, swim lanes, HTML page, terminal, live view."""
