"""Speculative decoding: the MTP layer drafts, the model verifies, and the counts say how well that went."""
