"""What people look at: the report of one or more runs, and the trace of single problems. Nothing here trains, and matplotlib is imported nowhere else.

runs.py finds and reads results; series.py, ablation.py and figures.py turn them into numbers and pictures; plots.py draws; page.py writes HTML.
"""
