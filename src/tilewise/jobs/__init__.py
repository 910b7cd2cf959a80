"""Batch jobs: a file of requests in, a file of answers out, whatever happens in between.

The output is the only record of what is done. `source` and `task` read the input, `result` and `output` write results
and find those that an earlier run left, `feed` and `client` ask the rest, and `run` and `work` put all of it together
with a server's application, which is local (`local_server`) or on a Ray cluster (`cluster_server`).
"""
