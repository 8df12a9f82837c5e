"""The data plane: one process beside one engine, deciding which stage of the cascade answers.

A request enters at any router of the cascade, is answered by the first stage whose score is good
enough, and travels between stages as a chain of routers. Start reading at `exchange`, one request's
life; `server` puts the parts together.
"""
