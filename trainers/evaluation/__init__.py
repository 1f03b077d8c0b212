"""How good a student is: scores, their intervals, and where it errs."""
