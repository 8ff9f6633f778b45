"""Studies of the bundled stack in the cost model: rates are simulated, and every table names its command."""
