"""The benchmark: Understudy against its peers, on the same data in the same run; always ratios of interleaved runs.

``python -m bench`` in the project's directory. No figure here is a test: a busy machine misses goals without a defect.
"""
