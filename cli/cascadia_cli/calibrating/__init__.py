"""`cascadia calibrate`: every stage answers every prompt; each answer is scored, judged and written down."""
