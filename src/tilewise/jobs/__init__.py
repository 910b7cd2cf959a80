"""Batch jobs: a file of requests in, a file of answers out, whatever happens in between.

The output is the only record of what is done. `source` and `task` read the input, `result` and `output` write, `scan`
finds out what an earlier run left, `feed` asks the rest and `run` puts all of it together with a server's application.
"""
