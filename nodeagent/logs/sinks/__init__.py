"""Where records go: each kind of sink encodes records for its protocol, and says what an answer means
for each of them. What is tried again, when, and what waits on disk is not theirs to say
(``nodeagent/logs/delivery``).
"""
