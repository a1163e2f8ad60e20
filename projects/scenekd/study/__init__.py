"""Studies: many runs that answer one question, and the page that says what they found.

A paper's experiments by one command: rows declared in YAML, presets of data and budget. A system plugs in by a module
``<system>.reproduce`` with a :class:`~scenekd.study.spec.StudySpec` named ``STUDY``.
"""
