"""Published benchmarks: their files as items, asked and scored.

registry.py     every task by name
answers.py, options.py, yes_no.py, mathvista.py, videos.py
                the tasks: readers, prompts, golds
task.py         what a task is
tables.py, media.py, subtitles.py
                what published files hold
asking.py       items to requests, answers to predictions
predictions.py  predictions on disk
results.py      predictions to figures, and their table
run.py          all of it, for some tasks
curve.py        all of it, for every budget; chart.py draws it
"""
