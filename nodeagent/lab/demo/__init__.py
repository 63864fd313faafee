"""The demonstration behind ``make demo``: a small application in a lab, with and without agents,
and what can be seen of it.
"""
