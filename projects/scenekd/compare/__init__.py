"""Networks of one task side by side: what they see, what each class gains, what they cost.

``sources`` opens them, ``scoring`` scores them, ``gains`` holds one against another, ``cost`` measures them, ``page``
and ``pictures`` show it all; ``tools/compare.py`` is the command, and a study's page takes the same parts.
"""
