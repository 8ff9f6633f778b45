"""What runs next: admission, the plan of a step, its results, and the release of rows and pages; `engine` uses it."""
