"""Mutation of the stack: each edge that holds an order is removed once, and a detector has to notice."""
