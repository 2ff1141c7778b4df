"""Tuning: trials of one script in processes of their own, with values that Optuna finds."""
