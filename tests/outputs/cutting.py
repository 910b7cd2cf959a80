"""Texts cut into pieces."""

from hypothesis import strategies as st

ANY_CUT = st.lists(st.integers(min_value=1, max_value=5), max_size=40) | st.just([1] * 400)


def cut(text: str, lengths: list[int]) -> list[str]:
    """Pieces of these lengths, and the rest."""
    pieces = []
    for length in lengths:
        pieces.append(text[:length])
        text = text[length:]
    return [piece for piece in [*pieces, text] if piece]
