"""The command line: thin commands, one a module, each imported only when it runs (``main.py``).

Which agents a command talks to, ``admin.py`` says for all of them; how lists are printed,
``output.py``.
"""
