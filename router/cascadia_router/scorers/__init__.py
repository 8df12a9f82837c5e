"""What scores an engine's answer: one protocol, from log-probabilities that came with it to a judge elsewhere.

Start reading at `protocol`; `building` makes a policy's scorer. docs/scorers.md tells users which to take.
"""
