"""The OpenAPI document, and the pages that show it.

Routes read and write JSON themselves, so nothing can be derived from their signatures: each says what it takes and
gives in an `Operation` beside it, and the document is put together of those, the tables of fields and the types of
`server/protocol`.
"""
