"""Types of request bodies and of answers. The tables of `server/fields` say which fields a body has at all."""
