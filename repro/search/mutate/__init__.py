"""Mutation of the stack: what holds an order is taken away, one thing at a time, and somebody has to notice."""
