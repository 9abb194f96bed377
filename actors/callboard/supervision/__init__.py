"""The rooms of the supervisor: which runs are taken in, when each goes to work, and what becomes of it."""
