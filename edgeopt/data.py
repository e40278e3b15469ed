"""Data in three parts that never mix: calibrate, validate, evaluate.

Passes and search see ``calibrate`` and ``validate``, as ``Samples``. ``evaluate`` is an ``Evaluation``,
sealed: only the judge opens it, once its artifact's files are final.
"""
