"""Batch jobs: a file of requests in, a file of answers out, whatever happens in between.

The output is the only record of what is done. `input` reads lines and the requests in them, `output` writes results and
finds those that an earlier run left, `feed` asks the rest, of a `server` that is local or on a Ray cluster, and `run`
puts all of it together for a `job`.
"""
