"""The loop that trains, and what happens between its steps."""
