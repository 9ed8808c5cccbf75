"""Published benchmarks: their files as items, asked and scored.

registry.py     every task by name
files.py        tables and media in the forms that they are published in
pictures.py, letters.py, yes_no.py, math.py, videos.py
                the tasks: readers, prompts, golds
predictions.py  what was answered, on disk
asking.py       items to requests, answers to predictions
results.py      predictions to results.json and its table
"""
