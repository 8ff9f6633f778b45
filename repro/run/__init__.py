"""One run from the scenario to the verdict (`run.run_scenario`); searches, fleets, tools and commands enter here."""
