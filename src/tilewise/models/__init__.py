"""InternVL: vision tower, projector and decoder, built by pulling weights from a view."""
